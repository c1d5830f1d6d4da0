//! Frames: a u32 big-endian length and as many bytes.

/// The size of a frame's length field.
pub const HEADER: usize = 4;

/// How many of `bytes`, which begin with a frame, belong to frames that are complete.
pub fn complete(bytes: &[u8]) -> usize {
    let mut end = 0;
    while let Some(frame) = next(&bytes[end..]) {
        end += frame;
    }
    end
}

/// The length of the first frame with its header, if it is complete.
fn next(bytes: &[u8]) -> Option<usize> {
    let frame = HEADER + u32::from_be_bytes(*bytes.first_chunk()?) as usize;
    (frame <= bytes.len()).then_some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: &[u8] = &[0, 0, 0, 2, b'a', b'b', 0, 0, 0, 0, 0, 0, 0, 1, b'c'];

    #[test]
    fn every_prefix_ends_after_its_last_complete_frame() {
        let expected = [0, 0, 0, 0, 0, 0, 6, 6, 6, 6, 10, 10, 10, 10, 10, 15];
        for (length, end) in expected.into_iter().enumerate() {
            assert_eq!(complete(&FRAMES[..length]), end, "{length} bytes");
        }
    }

    #[test]
    fn the_longest_length_is_only_incomplete() {
        assert_eq!(complete(&[0xff, 0xff, 0xff, 0xff, 1, 2, 3]), 0);
    }
}
