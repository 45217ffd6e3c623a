//! Random: any endpoint, by weight. It remembers and compares nothing, so no number of callers can herd; the price is that
//! chance alone now and then gives one endpoint several exchanges at once.

use std::sync::Arc;

use super::{Among, Ask, Dice, Group, Picker};
use crate::endpoint::Endpoint;

/// The policy over one group.
#[derive(Debug)]
pub(super) struct Random {
    group: Group,
}

impl Random {
    pub(super) fn new(group: Group) -> Self {
        Self { group }
    }
}

impl Picker for Random {
    fn pick(&self, ask: &Ask<'_>, among: Among) -> Option<&Arc<Endpoint>> {
        let mut dice = Dice::new(ask.random);
        let index = self.group.one(ask, among, &mut dice)?;
        Some(&self.group.endpoints[index])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;

    #[test]
    fn each_is_as_likely_as_its_weight_says() {
        for weights in [
            vec![1; 2],
            vec![1; 7],
            vec![1; 100],
            vec![5, 1, 1],
            vec![60_000, 1_000, 7],
        ] {
            let set = weighted("random", &weights);
            let counts = tally(&set, 100_000, &[], now());
            assert_shares(&counts, &weights);
        }
    }
}
