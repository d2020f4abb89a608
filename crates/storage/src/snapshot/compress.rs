//! Compresses and decompresses chunks.

use std::io::Read as _;

use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::Compression;
use super::header::MAX_CHUNK_BYTES;

/// Returns the compressed chunk; `None` if it would not be shorter than the content, which is then
/// stored itself.
pub(super) fn compressed(method: Compression, content: &[u8]) -> Option<Vec<u8>> {
    match method {
        Compression::None => None,
        Compression::Zstd => {
            let stored = compress_to_vec(content, CompressionLevel::Fastest);
            (stored.len() < content.len()).then_some(stored)
        }
    }
}

/// Decompresses a chunk of `len` bytes into `content`. The frame's own sizes are not trusted: at
/// most `len + 1` bytes are decompressed, and the window gets no more memory than the longest chunk
/// needs.
///
/// # Errors
/// A text: the bytes are not a frame, or decompress to another length.
pub(super) fn decompress(stored: &[u8], len: usize, content: &mut Vec<u8>) -> Result<(), String> {
    content.clear();
    let mut decoder =
        StreamingDecoder::new_with_max_window_size(stored, u64::from(MAX_CHUNK_BYTES))
            .map_err(|error| error.to_string())?;
    let mut bounded = (&mut decoder).take(len as u64 + 1);
    bounded.read_to_end(content).map_err(|error| error.to_string())?;
    match content.len() {
        found if found == len => Ok(()),
        found if found > len => Err(format!("it decompresses to more than {len} bytes")),
        found => Err(format!("it decompresses to {found} bytes, not {len}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn content_comes_back_and_what_gets_no_shorter_is_stored_as_it_is() {
        let text = b"a record like the one before it, ".repeat(4_000);
        let stored = compressed(Compression::Zstd, &text).unwrap();
        assert!(stored.len() < text.len() / 4, "{} of {}", stored.len(), text.len());
        let mut content = vec![1, 2, 3];
        decompress(&stored, text.len(), &mut content).unwrap();
        assert_eq!(content, text);
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(4_096)
        .collect();
        assert_eq!(compressed(Compression::Zstd, &noise), None);
        assert_eq!(compressed(Compression::None, &text), None);
    }

    /// The longest chunk is restored, whatever window its frame requires.
    #[test]
    fn the_longest_chunk_fits() {
        let text = b"a record like the one before it, ".repeat(MAX_CHUNK_BYTES as usize / 33 + 1);
        let text = &text[..MAX_CHUNK_BYTES as usize];
        let stored = compressed(Compression::Zstd, text).unwrap();
        let mut content = Vec::new();
        decompress(&stored, text.len(), &mut content).unwrap();
        assert!(content == text);
    }

    /// A frame of a few bytes cannot make this process allocate much memory (RFC 8878, section
    /// 3.1.1.1.2).
    #[test]
    fn a_window_larger_than_any_chunk_is_refused() {
        const MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
        // The last block, raw, of one byte.
        const BLOCK: [u8; 4] = [0x09, 0, 0, b'x'];
        // A window descriptor of 2^22 or 2^23 bytes; and frames with a single segment that announce
        // a content of that length.
        let windows = |exponent: u8| [&MAGIC[..], &[0x00, (exponent - 10) << 3], &BLOCK].concat();
        let segments = |exponent: u8| {
            [&MAGIC[..], &[0xA0], &(1_u32 << exponent).to_le_bytes(), &BLOCK].concat()
        };
        let mut content = Vec::new();
        decompress(&windows(22), 1, &mut content).unwrap();
        assert_eq!(content, b"x");
        for frame in [windows(23), segments(23), windows(27), segments(31)] {
            let error = decompress(&frame, 1, &mut content).unwrap_err();
            assert!(error.contains("window"), "{error}");
        }
    }

    #[test]
    fn another_length_and_bytes_that_are_no_frame_are_refused() {
        let stored = compressed(Compression::Zstd, &[7; 10_000]).unwrap();
        let mut content = Vec::new();
        for len in [0, 9_999, 10_001, 1 << 20] {
            let error = decompress(&stored, len, &mut content).unwrap_err();
            assert!(error.contains("decompresses to"), "{len}: {error}");
            assert!(content.len() <= len + 1, "no more is taken than was announced");
        }
        for cut in 0..stored.len() {
            decompress(&stored[..cut], 10_000, &mut content).unwrap_err();
        }
        decompress(&[0xAB; 64], 10_000, &mut content).unwrap_err();
    }

    /// A damaged frame decompresses to the announced length or gives an error. It never panics and
    /// never yields more.
    #[test]
    fn frames_with_a_flipped_bit_do_no_harm() {
        let text: Vec<u8> =
            (0..600_u32).flat_map(|n| format!("{} {}, ", n % 37, n * n).into_bytes()).collect();
        let stored = compressed(Compression::Zstd, &text).unwrap();
        let mut content = Vec::new();
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if decompress(&damaged, text.len(), &mut content).is_ok() {
                assert_eq!(content.len(), text.len());
            }
            assert!(content.len() <= text.len() + 1, "bit {bit}");
        }
    }
}
