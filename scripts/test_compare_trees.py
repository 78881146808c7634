#!/usr/bin/env python3
"""Tests of compare-trees.py, the judge of tests and benchmarks: it must miss nothing."""

import importlib.util
import os
import re
import tempfile
import unittest
from pathlib import Path

spec = importlib.util.spec_from_file_location("compare_trees", Path(__file__).with_name("compare-trees.py"))
judge = importlib.util.module_from_spec(spec)
spec.loader.exec_module(judge)


class Differences(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.a, self.b = (os.path.join(os.fsencode(folder.name), name) for name in (b"a", b"b"))
        for root in (self.a, self.b):
            os.makedirs(root + b"/d/e")
            self.write(root + b"/d/file", b"content")
            self.write(root + b"/odd\n\xff", b"")
            os.symlink(b"file", root + b"/d/link")
            for path in (b"/d/link", b"/d/e", b"/d"):
                os.utime(root + path, ns=(1, 1), follow_symlinks=False)

    def write(self, path, content):
        with open(path, "wb") as file:
            file.write(content)
        os.utime(path, ns=(5, 5))

    def found(self, **rules):
        return [(d.path, d.field) for d in judge.compare(self.a, self.b, judge.Rules(**rules))]

    def test_equal_trees(self):
        """Proves that equal trees are equal, with names that are neither text nor one line."""
        self.assertEqual(self.found(), [])

    def test_content_of_the_same_size_and_time(self):
        """Proves that content is read, not inferred."""
        self.write(self.b + b"/d/file", b"Content")
        self.assertEqual(self.found(), [(b"d/file", "content")])

    def test_content_beyond_the_first_chunk(self):
        """Proves that files are read to their end."""
        big = bytes(judge.CHUNK_BYTES + 1)
        self.write(self.a + b"/big", big)
        self.write(self.b + b"/big", big[:-1] + b"x")
        self.assertEqual(self.found(), [(b"big", "content")])

    def test_one_nanosecond(self):
        """Proves that times are compared in nanoseconds, of files, folders and symlinks."""
        os.utime(self.b + b"/d/file", ns=(5, 6))
        os.utime(self.b + b"/d/link", ns=(1, 2), follow_symlinks=False)
        os.utime(self.b + b"/d/e", ns=(1, 2))
        self.assertEqual(self.found(), [(b"d/e", "dir-mtime"), (b"d/file", "mtime"), (b"d/link", "link-mtime")])
        self.assertEqual(self.found(ignored=frozenset(["mtime"])), [])

    def test_mode_type_size_and_target(self):
        """Proves that each of these is seen."""
        os.chmod(self.b + b"/d/file", 0o600)
        self.write(self.b + b"/odd\n\xff", b"longer")
        os.unlink(self.b + b"/d/link")
        os.symlink(b"else", self.b + b"/d/link")
        os.rmdir(self.b + b"/d/e")
        self.write(self.b + b"/d/e", b"")
        fields = {field for _, field in self.found(ignored=frozenset(["mtime", "link-mtime", "dir-mtime"]))}
        self.assertEqual(fields, {"mode", "size", "target", "type"} - ({"mode"} if os.stat(self.a + b"/d/file").st_mode & 0o777 == 0o600 else set()))

    def test_names_on_either_side(self):
        """Proves that what is only on one side is named, whichever."""
        self.write(self.a + b"/only-a", b"")
        os.mkdir(self.b + b"/only-b")
        self.assertEqual(self.found(), [(b"only-a", "name"), (b"only-b", "name")])

    def test_what_is_left_out(self):
        """Proves that reserved names and filtered folders are left out at every depth, and nothing else."""
        os.makedirs(self.b + b"/d/e/.cdsync/x")
        os.makedirs(self.b + b"/d/e/.git/x")
        self.write(self.b + b"/.gitignore", b"")
        excluded = (re.compile(rb"(^|/)\.git/"),)
        found = self.found(exclude_reserved=True, excluded=excluded, ignored=frozenset(["mtime"]))
        self.assertEqual(found, [(b".gitignore", "name")])


if __name__ == "__main__":
    unittest.main()
