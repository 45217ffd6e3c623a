//! Draws from a random number that a decision is handed, and the hash that keys and addresses go by.

/// As many draws as a decision needs from the one random number it is handed (splitmix64).
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0 to `bound` − 1, each as likely as the others (to within 2⁻³²). `bound` must not be zero.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }

    /// True in `share` of `whole` cases.
    pub(super) fn chance(&mut self, share: u32, whole: u32) -> bool {
        self.below(whole as usize) < share as usize
    }
}

/// Spreads a number over all 64 bits: the finaliser of splitmix64.
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The hash of a key or of an endpoint's address (FNV-1a, mixed). It is the same in every process, on every machine and
/// in every version: replicas that share no state must agree on where a key belongs.
///
/// It is not secret, so a client that chooses its keys can choose its endpoint; what that can do, `max_load` bounds.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    for &byte in bytes {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_same_for_ever() {
        // Were it to change, every replica that is updated would send every key elsewhere.
        assert_eq!(hash(b""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(hash(b"user-1"), 0xc499_b5f8_a721_df58);
        assert_eq!(hash(b"10.0.0.1:80"), 0xdbbc_907f_2153_1a73);
    }

    #[test]
    fn near_keys_are_spread_evenly() {
        let mut counts = [0_u32; 64];
        for key in 0..64_000 {
            counts[(hash(format!("user-{key}").as_bytes()) >> 58) as usize] += 1;
        }
        // 1,000 each; five standard deviations are 158.
        assert!(
            counts.iter().all(|&c| (842..1_158).contains(&c)),
            "{counts:?}"
        );
    }
}
