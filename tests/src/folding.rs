//! A filesystem that takes names for one which differ only in case: in memory, served by this
//! process through FUSE. Few kernels have a real one.
#![expect(
    clippy::host_endian_bytes,
    reason = "the kernel speaks as this machine does"
)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// The largest request: what is written at once, with its header.
const REQUEST_MAX: usize = (1 << 17) + 4096;
const WRITE_MAX: u32 = 1 << 17;
const ROOT: u64 = 1;
const FOLDER: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const KIND: u32 = 0o170_000;
/// `RENAME_EXCHANGE`.
const EXCHANGE: u32 = 2;

/// A mounted filesystem, unmounted when this is dropped.
#[derive(Debug)]
pub struct Folding {
    path: PathBuf,
}

impl Folding {
    /// Mounts it over a folder. `None` where this kernel has no FUSE, or this process may not mount.
    #[must_use]
    pub fn mount(path: &Path) -> Option<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.ok()?;
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            device.as_raw_fd()
        );
        let data = CString::new(data).ok()?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("cdsync-fold", path, "fuse", flags, Some(&*data)).ok()?;
        std::thread::spawn(move || Tree::new().serve(&device));
        let path = path.to_owned();
        Some(Self { path })
    }
}

impl Drop for Folding {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.path, UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {error}", self.path.display());
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Time(u64, u32);

impl Time {
    fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Self(since.as_secs(), since.subsec_nanos())
    }
}

#[derive(Debug, Default)]
struct Node {
    mode: u32,
    uid: u32,
    gid: u32,
    device: u32,
    links: u32,
    accessed: Time,
    modified: Time,
    changed: Time,
    /// A file's bytes, or what a link says.
    bytes: Vec<u8>,
    /// By the form that counts: the name as it was given, and what it leads to.
    children: BTreeMap<Vec<u8>, (Vec<u8>, u64)>,
}

#[derive(Debug)]
struct Tree {
    nodes: BTreeMap<u64, Node>,
    next: u64,
}

type Answer = Result<Vec<u8>, Errno>;

fn fold(name: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(name).to_lowercase().into_bytes()
}

/// The fields of a request, read in their order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(count);
        self.0 = rest;
        head
    }

    fn word(&mut self) -> u32 {
        u32::from_ne_bytes(self.take(4).try_into().unwrap())
    }

    fn long(&mut self) -> u64 {
        u64::from_ne_bytes(self.take(8).try_into().unwrap())
    }

    fn text(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap();
        let text = self.take(end);
        self.take(1);
        text
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

impl Tree {
    fn new() -> Self {
        let mut root = Node {
            mode: FOLDER | 0o755,
            links: 2,
            ..Node::default()
        };
        root.touch();
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            next: ROOT + 1,
        }
    }

    /// Answers until it is unmounted.
    fn serve(mut self, device: &File) {
        let (mut reader, mut writer) = (device, device);
        let mut buffer = vec![0; REQUEST_MAX];
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => continue,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let mut fields = Fields(&buffer[..read]);
            let (_, operation, unique) = (fields.word(), fields.word(), fields.long());
            let node = fields.long();
            let (uid, gid) = (fields.word(), fields.word());
            fields.take(8);
            // Forgotten nodes and interrupts get no answer.
            if matches!(operation, 2 | 36 | 42) {
                continue;
            }
            let (error, body) = match self.answer(operation, node, (uid, gid), &mut fields) {
                Ok(body) => (0, body),
                Err(errno) => (-errno.raw_os_error(), Vec::new()),
            };
            let len = u32::try_from(16 + body.len()).unwrap();
            let mut reply = words(&[len, error.cast_unsigned()]);
            reply.extend(unique.to_ne_bytes());
            reply.extend(body);
            // Whoever asked may have been killed meanwhile.
            drop(writer.write(&reply));
        }
    }

    fn answer(&mut self, operation: u32, id: u64, owner: (u32, u32), f: &mut Fields<'_>) -> Answer {
        match operation {
            1 => {
                let found = self.child(id, f.text())?;
                Ok(self.entry(found))
            }
            3 => self.attributes(id),
            4 => self.set_attributes(id, f),
            5 => Ok(self.node(id)?.bytes.clone()),
            6 => {
                let (name, target) = (f.text().to_vec(), f.text().to_vec());
                let made = self.make(id, &name, LINK | 0o777, 0, owner)?;
                self.node(made)?.bytes = target;
                Ok(self.entry(made))
            }
            8 => {
                let (mode, device, _, _) = (f.word(), f.word(), f.word(), f.word());
                let made = self.make(id, f.text(), mode, device, owner)?;
                Ok(self.entry(made))
            }
            9 => {
                let (mode, _) = (f.word(), f.word());
                let made = self.make(id, f.text(), FOLDER | (mode & 0o7777), 0, owner)?;
                Ok(self.entry(made))
            }
            10 | 11 => self.remove(id, f.text(), operation == 11),
            12 => {
                let to = f.long();
                self.rename((id, f.text()), (to, f.text()), 0)
            }
            45 => {
                let (to, flags, _) = (f.long(), f.word(), f.word());
                self.rename((id, f.text()), (to, f.text()), flags)
            }
            13 => {
                let of = f.long();
                self.put(id, f.text(), of)?;
                let node = self.node(of)?;
                node.links += 1;
                node.changed = Time::now();
                Ok(self.entry(of))
            }
            14 | 27 => Ok([longs(&[0]), words(&[0, 0])].concat()),
            15 => {
                let (_, offset, size) = (f.long(), f.long(), f.word());
                let bytes = &self.node(id)?.bytes;
                let start = usize::try_from(offset).unwrap().min(bytes.len());
                let end = (start + size as usize).min(bytes.len());
                Ok(bytes[start..end].to_vec())
            }
            16 => {
                let (_, offset, size) = (f.long(), f.long(), f.word());
                f.take(20);
                let (start, size) = (usize::try_from(offset).unwrap(), size as usize);
                let node = self.node(id)?;
                node.bytes.resize(node.bytes.len().max(start + size), 0);
                node.bytes[start..start + size].copy_from_slice(f.take(size));
                node.touch();
                Ok(words(&[u32::try_from(size).unwrap(), 0]))
            }
            17 => Ok([
                longs(&[1 << 18, 1 << 18, 1 << 18, 1 << 20, 1 << 20]),
                words(&[4096, 255, 4096, 0, 0, 0, 0, 0, 0, 0]),
            ]
            .concat()),
            18 | 20 | 25 | 29 | 30 => Ok(Vec::new()),
            26 => Ok(words(&[
                7,
                31,
                1 << 17,
                0,
                0,
                WRITE_MAX,
                1,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
            ])),
            28 => {
                let (_, offset, size) = (f.long(), f.long(), f.word());
                self.list(id, offset, size as usize)
            }
            35 => {
                let (_, mode, _, _) = (f.word(), f.word(), f.word(), f.word());
                let made = self.make(id, f.text(), mode, 0, owner)?;
                Ok([self.entry(made), longs(&[0]), words(&[0, 0])].concat())
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn node(&mut self, id: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&id).ok_or(Errno::STALE)
    }

    fn child(&mut self, folder: u64, name: &[u8]) -> Result<u64, Errno> {
        let found = self.node(folder)?.children.get(&fold(name));
        found.map(|(_, id)| *id).ok_or(Errno::NOENT)
    }

    /// Gives a node a name that must be free.
    fn put(&mut self, folder: u64, name: &[u8], id: u64) -> Result<(), Errno> {
        let node = self.node(folder)?;
        if node.children.contains_key(&fold(name)) {
            return Err(Errno::EXIST);
        }
        node.children.insert(fold(name), (name.to_vec(), id));
        node.touch();
        Ok(())
    }

    fn make(
        &mut self,
        folder: u64,
        name: &[u8],
        mode: u32,
        device: u32,
        (uid, gid): (u32, u32),
    ) -> Result<u64, Errno> {
        let id = self.next;
        self.put(folder, name, id)?;
        self.next += 1;
        let mut node = Node {
            mode,
            uid,
            gid,
            device,
            links: 1,
            ..Node::default()
        };
        node.touch();
        self.nodes.insert(id, node);
        Ok(id)
    }

    fn remove(&mut self, folder: u64, name: &[u8], is_folder: bool) -> Answer {
        let id = self.child(folder, name)?;
        if is_folder && !self.node(id)?.children.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        let parent = self.node(folder)?;
        parent.children.remove(&fold(name));
        parent.touch();
        let node = self.node(id)?;
        // Whoever has it open may still use it: it stays in memory.
        node.links = node.links.saturating_sub(1);
        node.changed = Time::now();
        Ok(Vec::new())
    }

    fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Answer {
        let moved = self.child(from.0, from.1)?;
        if flags == EXCHANGE {
            let other = self.child(to.0, to.1)?;
            let swap = |node: &mut Node, name: &[u8], id| {
                // The names stay as they are written.
                node.children.get_mut(&fold(name)).unwrap().1 = id;
                node.touch();
            };
            swap(self.node(from.0)?, from.1, other);
            swap(self.node(to.0)?, to.1, moved);
        } else {
            if self.child(to.0, to.1).is_ok_and(|there| there != moved) {
                let there = self.child(to.0, to.1)?;
                let is_folder = self.node(there)?.mode & KIND == FOLDER;
                self.remove(to.0, to.1, is_folder)?;
            }
            let parent = self.node(from.0)?;
            parent.children.remove(&fold(from.1));
            parent.touch();
            self.put(to.0, to.1, moved)?;
        }
        self.node(moved)?.changed = Time::now();
        Ok(Vec::new())
    }

    fn set_attributes(&mut self, id: u64, f: &mut Fields<'_>) -> Answer {
        let (valid, _, _, size, _) = (f.word(), f.word(), f.long(), f.long(), f.long());
        let secs = [f.long(), f.long(), f.long()];
        let nanos = [f.word(), f.word(), f.word()];
        let (mode, _, uid, gid) = (f.word(), f.word(), f.word(), f.word());
        let node = self.node(id)?;
        let is_set = |bit: u32| valid & (1 << bit) != 0;
        if is_set(0) {
            node.mode = (node.mode & KIND) | (mode & 0o7777);
        }
        if is_set(1) {
            node.uid = uid;
        }
        if is_set(2) {
            node.gid = gid;
        }
        if is_set(3) {
            node.bytes.resize(usize::try_from(size).unwrap(), 0);
            node.touch();
        }
        if is_set(4) {
            node.accessed = Time(secs[0], nanos[0]);
        }
        if is_set(5) {
            node.modified = Time(secs[1], nanos[1]);
        }
        if is_set(8) {
            node.modified = Time::now();
        }
        node.changed = Time::now();
        self.attributes(id)
    }

    fn list(&mut self, id: u64, offset: u64, size: usize) -> Answer {
        let mut entries = Vec::new();
        let children: Vec<_> = self.node(id)?.children.values().cloned().collect();
        let from = usize::try_from(offset).unwrap();
        for (at, (name, child)) in children.into_iter().enumerate().skip(from) {
            let kind = (self.node(child)?.mode & KIND) >> 12;
            let len = u32::try_from(name.len()).unwrap();
            let mut entry = longs(&[child, at as u64 + 1]);
            entry.extend(words(&[len, kind]));
            entry.extend(name);
            entry.resize(entry.len().next_multiple_of(8), 0);
            if entries.len() + entry.len() > size {
                break;
            }
            entries.extend(entry);
        }
        Ok(entries)
    }

    fn attributes(&mut self, id: u64) -> Answer {
        let attr = self.node(id)?.attributes(id);
        Ok([longs(&[0]), words(&[0, 0]), attr].concat())
    }

    fn entry(&mut self, id: u64) -> Vec<u8> {
        // Nothing may be taken from the kernel's memory: names lead elsewhere all the time.
        let attr = self.nodes[&id].attributes(id);
        [longs(&[id, 0, 0, 0]), words(&[0, 0]), attr].concat()
    }
}

impl Node {
    fn touch(&mut self) {
        self.modified = Time::now();
        self.changed = self.modified;
    }

    fn attributes(&self, id: u64) -> Vec<u8> {
        let size = self.bytes.len() as u64;
        let times = [self.accessed, self.modified, self.changed];
        let mut attr = longs(&[id, size, size.div_ceil(512)]);
        attr.extend(longs(&times.map(|time| time.0)));
        attr.extend(words(&times.map(|time| time.1)));
        let (uid, gid) = (self.uid, self.gid);
        attr.extend(words(&[
            self.mode,
            self.links,
            uid,
            gid,
            self.device,
            4096,
            0,
        ]));
        attr
    }
}
