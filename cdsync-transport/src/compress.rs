//! zstd with contexts that are kept: a new one per message costs more than a small message.

use thiserror::Error;
use zstd::zstd_safe::ResetDirective::SessionOnly;
use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer};

/// The largest window that is decoded, as a power of two: 8 MiB. It bounds what a peer can make the
/// decoder allocate, and no level that is worth its time on a wire needs more (level 19 uses 8 MiB).
pub const MAX_WINDOW_LOG: u32 = 23;

/// The levels that are taken: negative ones trade ratio for speed, above 19 windows grow.
pub const LEVELS: std::ops::RangeInclusive<i32> = -7..=19;

/// Why data could not be compressed or decompressed. Never retryable.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CompressError {
    /// zstd could not work, which means memory ran out.
    #[error("zstd cannot compress: {detail}")]
    Compress {
        /// What zstd said.
        detail: &'static str,
    },
    /// The input is no zstd frame, is damaged, or wants a window over [`MAX_WINDOW_LOG`].
    #[error("not a zstd frame that is taken here: {detail}")]
    Decompress {
        /// What zstd said.
        detail: &'static str,
    },
    /// The output would be larger than allowed.
    #[error("the data would decompress to more than {max} bytes")]
    TooLarge {
        /// The maximum in force.
        max: usize,
    },
    /// The input ends before its frame does.
    #[error("the compressed data ends early")]
    Truncated,
}

fn compress_error(code: usize) -> CompressError {
    CompressError::Compress {
        detail: zstd_safe::get_error_name(code),
    }
}

fn decompress_error(code: usize) -> CompressError {
    CompressError::Decompress {
        detail: zstd_safe::get_error_name(code),
    }
}

/// Compresses messages, one context for all. About 1 MiB at level 1, up to 90 MiB at level 19.
pub struct Compressor {
    context: CCtx<'static>,
    level: i32,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor")
            .field("level", &self.level)
            .finish_non_exhaustive()
    }
}

impl Default for Compressor {
    fn default() -> Self {
        Self {
            context: CCtx::create(),
            level: 0,
        }
    }
}

impl Compressor {
    /// A compressor with its context.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one zstd frame made of all `parts` to `output`. `level` is cut to [`LEVELS`].
    ///
    /// # Errors
    /// [`CompressError::Compress`]; `output` may then hold a part of a frame.
    pub fn compress_into<P: AsRef<[u8]>>(
        &mut self,
        level: i32,
        parts: &[P],
        output: &mut Vec<u8>,
    ) -> Result<(), CompressError> {
        let total: usize = parts.iter().map(|part| part.as_ref().len()).sum();
        output.reserve(zstd_safe::compress_bound(total));
        let outcome = self.run(level, parts, total, output);
        if outcome.is_err() {
            // Leaves the frame, so that the next message starts afresh. It cannot fail.
            let _ = self.context.reset(SessionOnly);
        }
        outcome
    }

    fn run<P: AsRef<[u8]>>(
        &mut self,
        level: i32,
        parts: &[P],
        total: usize,
        output: &mut Vec<u8>,
    ) -> Result<(), CompressError> {
        self.set_level(level.clamp(*LEVELS.start(), *LEVELS.end()))?;
        // With the size known, zstd picks tables to match and writes it into the frame.
        self.context
            .set_pledged_src_size(Some(total as u64))
            .map_err(compress_error)?;
        let start = output.len();
        let mut out = OutBuffer::around_pos(output, start);
        for part in parts {
            let mut input = InBuffer::around(part.as_ref());
            while input.pos() < part.as_ref().len() {
                self.context
                    .compress_stream2(&mut out, &mut input, ZSTD_EndDirective::ZSTD_e_continue)
                    .map_err(compress_error)?;
            }
        }
        let mut nothing = InBuffer::around(&[]);
        let left = self
            .context
            .compress_stream2(&mut out, &mut nothing, ZSTD_EndDirective::ZSTD_e_end)
            .map_err(compress_error)?;
        // `compress_bound` promises room for everything.
        if left == 0 {
            Ok(())
        } else {
            Err(CompressError::Compress { detail: "no room" })
        }
    }

    fn set_level(&mut self, level: i32) -> Result<(), CompressError> {
        if self.level != level {
            let set = |context: &mut CCtx<'static>, parameter| {
                context
                    .set_parameter(parameter)
                    .map(|_| ())
                    .map_err(compress_error)
            };
            set(&mut self.context, CParameter::CompressionLevel(level))?;
            self.level = level;
        }
        Ok(())
    }
}

/// Decompresses messages, one context for all. At most the window (8 MiB) and some 200 KiB.
pub struct Decompressor {
    context: DCtx<'static>,
}

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decompressor").finish_non_exhaustive()
    }
}

impl Default for Decompressor {
    fn default() -> Self {
        let mut context = DCtx::create();
        // 10 to 31 are valid, so this cannot fail; if it did, zstd's own bound of 27 would stay.
        let _ = context.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG));
        Self { context }
    }
}

impl Decompressor {
    /// A decompressor with its context.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The content of exactly one zstd frame, at most `max_output` bytes. Memory is taken as output
    /// is made, whatever size the frame announces.
    ///
    /// # Errors
    /// [`CompressError::Decompress`], [`CompressError::Truncated`], [`CompressError::TooLarge`]:
    /// the peer's fault, not retryable.
    pub fn decompress_bounded(
        &mut self,
        input: &[u8],
        max_output: usize,
    ) -> Result<Vec<u8>, CompressError> {
        let outcome = self.run(input, max_output);
        // Also after success: the context must not keep a state from one peer to the next.
        let _ = self.context.reset(SessionOnly);
        outcome
    }

    fn run(&mut self, input: &[u8], max: usize) -> Result<Vec<u8>, CompressError> {
        let announced = match zstd_safe::get_frame_content_size(input) {
            Ok(Some(size)) if size > max as u64 => return Err(CompressError::TooLarge { max }),
            Ok(Some(size)) => usize::try_from(size).unwrap_or(max),
            // zstd itself says below what is wrong with the header.
            Ok(None) | Err(_) => 0,
        };
        // What small frames announce is believed; beyond 64 KiB the output must come to be first.
        let mut output = Vec::with_capacity(announced.clamp(64, 64 * 1024).min(max.max(1)));
        let mut source = InBuffer::around(input);
        loop {
            let at = output.len();
            let (before, room) = (source.pos(), output.capacity() - at);
            let mut out = OutBuffer::around_pos(&mut output, at);
            let hint = self.context.decompress_stream(&mut out, &mut source);
            let made = out.pos() - at;
            match hint.map_err(decompress_error)? {
                0 if source.pos() < input.len() => {
                    return Err(CompressError::Decompress {
                        detail: "bytes after the frame",
                    });
                }
                0 if output.len() > max => return Err(CompressError::TooLarge { max }),
                0 => return Ok(output),
                _ if made == room => grow(&mut output, announced, max)?,
                _ if made == 0 && source.pos() == before => return Err(CompressError::Truncated),
                _ => {}
            }
        }
    }
}

/// Makes room for more output: twice as much, but not beyond what is announced or allowed.
fn grow(output: &mut Vec<u8>, announced: usize, max: usize) -> Result<(), CompressError> {
    if output.len() > max {
        return Err(CompressError::TooLarge { max });
    }
    let wanted = (output.capacity() * 2).max(64);
    let bound = if announced > output.len() {
        announced
    } else {
        max.saturating_add(1)
    };
    let target = wanted.min(bound).max(output.len() + 1);
    output.reserve_exact(target - output.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn compressed(level: i32, parts: &[&[u8]]) -> Vec<u8> {
        let mut output = Vec::new();
        Compressor::new()
            .compress_into(level, parts, &mut output)
            .unwrap();
        output
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Proves that any parts come back as one, at any level, with contexts used before.
        #[test]
        fn round_trip(
            parts in prop::collection::vec(prop::collection::vec(0u8..8, 0..50_000), 0..5),
            level in -20..6,
        ) {
            let (mut compressor, mut decompressor) = (Compressor::new(), Decompressor::new());
            let whole = parts.concat();
            for _ in 0..2 {
                let mut output = b"kept".to_vec();
                compressor.compress_into(level, &parts, &mut output).unwrap();
                prop_assert_eq!(&output[..4], b"kept");
                let back = decompressor.decompress_bounded(&output[4..], whole.len()).unwrap();
                prop_assert!(back == whole);
            }
        }

        /// Proves that no bytes of a peer make the decoder panic or exceed its bound.
        #[test]
        fn hostile_bytes(
            mut noise in prop::collection::vec(any::<u8>(), 0..300),
            at in 0usize..400,
        ) {
            let mut decompressor = Decompressor::new();
            let _ = decompressor.decompress_bounded(&noise, 1_000);
            let mut frame = compressed(1, &[&noise]);
            let at = at % frame.len();
            frame[at] ^= noise.pop().unwrap_or(1);
            if let Ok(output) = decompressor.decompress_bounded(&frame, 200) {
                prop_assert!(output.len() <= 200);
            }
        }
    }

    /// Proves that the bound holds to the byte, whether the frame announces its size or not.
    #[test]
    fn output_is_bounded() {
        let zeros = vec![0; 10 << 20];
        let announced = compressed(1, &[&zeros]);
        // A frame of unknown size, as a streaming encoder makes it.
        let mut context = CCtx::create();
        let mut silent = Vec::with_capacity(zstd_safe::compress_bound(zeros.len()));
        let mut out = OutBuffer::around(&mut silent);
        let mut input = InBuffer::around(&zeros);
        context
            .compress_stream2(&mut out, &mut input, ZSTD_EndDirective::ZSTD_e_flush)
            .unwrap();
        context
            .compress_stream2(&mut out, &mut input, ZSTD_EndDirective::ZSTD_e_end)
            .unwrap();
        let mut decompressor = Decompressor::new();
        for frame in [&announced, &silent] {
            let exact = decompressor.decompress_bounded(frame, zeros.len());
            assert_eq!(exact.map(|output| output.len()), Ok(zeros.len()));
            let max = zeros.len() - 1;
            let refused = decompressor.decompress_bounded(frame, max);
            assert_eq!(refused, Err(CompressError::TooLarge { max }));
            assert_eq!(
                decompressor.decompress_bounded(frame, 0),
                Err(CompressError::TooLarge { max: 0 })
            );
            let cut = &frame[..frame.len() - 1];
            assert_eq!(
                decompressor.decompress_bounded(cut, zeros.len()),
                Err(CompressError::Truncated)
            );
            let trailing = [frame, &b"x"[..]].concat();
            let refused = decompressor.decompress_bounded(&trailing, zeros.len());
            assert!(
                matches!(refused, Err(CompressError::Decompress { .. })),
                "{refused:?}"
            );
        }
        let empty = compressed(1, &[]);
        assert_eq!(decompressor.decompress_bounded(&empty, 0), Ok(Vec::new()));
        assert_eq!(
            decompressor.decompress_bounded(&[], 10),
            Err(CompressError::Truncated)
        );
    }

    /// Proves that a frame which wants a larger window than allowed is refused: a peer does not
    /// choose this side's memory.
    #[test]
    fn windows_are_bounded() {
        let mut context = CCtx::create();
        context
            .set_parameter(CParameter::WindowLog(MAX_WINDOW_LOG + 1))
            .unwrap();
        let data = vec![7; 1000];
        let mut frame = Vec::with_capacity(zstd_safe::compress_bound(data.len()));
        let mut out = OutBuffer::around(&mut frame);
        let mut input = InBuffer::around(&data);
        // Flushed before its end, the frame cannot know that it is small.
        context
            .compress_stream2(&mut out, &mut input, ZSTD_EndDirective::ZSTD_e_flush)
            .unwrap();
        context
            .compress_stream2(&mut out, &mut input, ZSTD_EndDirective::ZSTD_e_end)
            .unwrap();
        let refused = Decompressor::new().decompress_bounded(&frame, 1 << 20);
        assert!(
            matches!(refused, Err(CompressError::Decompress { .. })),
            "{refused:?}"
        );
    }

    /// Proves that what the strongest level makes is decoded here.
    #[test]
    fn strongest_level_fits_the_window() {
        let data: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
        let frame = compressed(*LEVELS.end(), &[&data]);
        let back = Decompressor::new()
            .decompress_bounded(&frame, data.len())
            .unwrap();
        assert!(back == data);
    }
}
