//! Chunks that are compressed: what is stored in the place of their content, and back.

use std::io::Read as _;

use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::Compression;

/// What is stored for a chunk; `None`: the content itself, because nothing is shorter.
pub(super) fn compressed(method: Compression, content: &[u8]) -> Option<Vec<u8>> {
    match method {
        Compression::None => None,
        Compression::Zstd => {
            let stored = compress_to_vec(content, CompressionLevel::Fastest);
            (stored.len() < content.len()).then_some(stored)
        }
    }
}

/// Puts the content of a chunk of `len` bytes into `content`. What the frame says of its own length is not believed:
/// no more than `len` bytes are ever taken from it.
///
/// # Errors
/// In words: it is no frame, or one of another length.
pub(super) fn decompress(stored: &[u8], len: usize, content: &mut Vec<u8>) -> Result<(), String> {
    content.clear();
    let mut decoder = StreamingDecoder::new(stored).map_err(|error| error.to_string())?;
    let mut bounded = (&mut decoder).take(len as u64 + 1);
    bounded.read_to_end(content).map_err(|error| error.to_string())?;
    match content.len() {
        found if found == len => Ok(()),
        found if found > len => Err(format!("it unfolds to more than {len} bytes")),
        found => Err(format!("it unfolds to {found} bytes, not {len}")),
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

    #[test]
    fn another_length_and_bytes_that_are_no_frame_are_refused() {
        let stored = compressed(Compression::Zstd, &[7; 10_000]).unwrap();
        let mut content = Vec::new();
        for len in [0, 9_999, 10_001, 1 << 20] {
            let error = decompress(&stored, len, &mut content).unwrap_err();
            assert!(error.contains("unfolds to"), "{len}: {error}");
            assert!(content.len() <= len + 1, "no more is taken than was announced");
        }
        for cut in 0..stored.len() {
            decompress(&stored[..cut], 10_000, &mut content).unwrap_err();
        }
        decompress(&[0xAB; 64], 10_000, &mut content).unwrap_err();
    }
}
