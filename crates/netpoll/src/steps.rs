//! Bytes as steps of a test.

use proptest::collection::vec;
use proptest::prelude::*;

/// Bytes of one step. All have the same size, so that a step may be left out and the others stay what they are.
pub(crate) const STEP: usize = 16;

/// The steps that `bytes` are; the last may have less of them.
pub(crate) fn steps(bytes: &[u8]) -> impl Iterator<Item = Step<'_>> {
    bytes.chunks(STEP).map(Step)
}

/// A source of numbers, which gives 0 when it is used up.
#[derive(Debug)]
pub(crate) struct Step<'a>(&'a [u8]);

impl Step<'_> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(crate) fn word(&mut self) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// 0 <= it < n
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        let number = match n {
            0..=256 => u32::from(self.byte()),
            _ => u32::from(self.byte()) << 16 | u32::from(self.byte()) << 8 | u32::from(self.byte()),
        };
        number % n
    }

    /// Less than `n` bytes, of which no two stretches are alike.
    pub(crate) fn bytes(&mut self, n: u32) -> Vec<u8> {
        let (length, seed) = (self.below(n), u32::from(self.byte()));
        (0..length).map(|place| ((place + 1).wrapping_mul(2_654_435_761 + 2 * seed) >> 24) as u8).collect()
    }
}

/// Bytes of up to `count` steps.
pub(crate) fn any_step_bytes(count: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<[u8; STEP]>(), 0..count).prop_map(|steps| steps.concat())
}

/// For properties of sockets: fewer cases, and no long search for the smallest that fails, for each may have to wait.
pub(crate) fn with_sockets() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig { cases: config.cases.div_ceil(8), max_shrink_time: 60_000, ..config }
}
