//! Bounds on what a message may make this side hold: many small things take more in memory than on
//! the wire, and texts are shown to people.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};

use crate::path::is_hidden;

/// The longest text for people that is taken, in bytes; what is longer is cut.
pub const TEXT_MAX_BYTES: usize = 4096;

/// What the lists of one message may take in memory, all together, in bytes. The largest record there
/// is takes a quarter of it.
pub const DECODED_MAX_BYTES: usize = 32 << 20;

thread_local! {
    /// What the lists of the message that is being decoded may still take.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Decodes one message: its lists take no more than [`DECODED_MAX_BYTES`].
pub(crate) fn message<R>(decode: impl FnOnce() -> R) -> R {
    LEFT.set(DECODED_MAX_BYTES);
    let decoded = decode();
    LEFT.set(usize::MAX);
    decoded
}

/// Counts what one more element of a list takes; `false` when that is too much.
fn charge<T>() -> bool {
    let left = LEFT.get().checked_sub(size_of::<T>());
    LEFT.set(left.unwrap_or_default());
    left.is_some()
}

/// Takes a list of at most `MAX` elements, and decodes no more of them.
pub(crate) fn list<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(Bounded::<T, MAX>(PhantomData))
}

/// As [`list`], of texts for people.
pub(crate) fn texts<'de, D, const MAX: usize>(deserializer: D) -> Result<Vec<String>, D::Error>
where
    D: Deserializer<'de>,
{
    let texts: Vec<Text> = list::<_, _, MAX>(deserializer)?;
    Ok(texts.into_iter().map(|text| text.0).collect())
}

/// Takes a text for people: cut, and on one line, so that it forges no line of a log and hides
/// nothing on a terminal.
pub(crate) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Text::deserialize(deserializer).map(|text| text.0)
}

/// As [`text`], where there may be none.
pub(crate) fn maybe_text<'de, D>(deserializer: D) -> Result<Option<String>, D::Error>
where
    D: Deserializer<'de>,
{
    Option::<Text>::deserialize(deserializer).map(|text| text.map(|text| text.0))
}

/// As [`text`], where it stands for what could not be had.
pub(crate) fn or_text<'de, D, T>(deserializer: D) -> Result<Result<T, String>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let result: Result<T, Text> = Deserialize::deserialize(deserializer)?;
    Ok(result.map_err(|text| text.0))
}

struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Plain;

        impl Visitor<'_> for Plain {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(plain(text)))
            }
        }

        deserializer.deserialize_str(Plain)
    }
}

/// A text of somebody else's, safe to show. What is safe already stays as it is.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len().min(TEXT_MAX_BYTES));
    for c in text.chars() {
        let before = plain.len();
        if is_hidden(c) {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
        if plain.len() > TEXT_MAX_BYTES {
            plain.truncate(before);
            break;
        }
    }
    plain
}

struct Bounded<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Bounded<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX} elements, and {DECODED_MAX_BYTES} bytes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut elements = Vec::new();
        while elements.len() < MAX {
            match seq.next_element()? {
                Some(element) if charge::<T>() => elements.push(element),
                Some(_) => break,
                None => return Ok(elements),
            }
        }
        match seq.next_element::<IgnoredAny>() {
            Ok(None) if elements.len() == MAX => Ok(elements),
            _ => Err(A::Error::invalid_length(elements.len() + 1, &self)),
        }
    }
}
