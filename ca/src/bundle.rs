//! The trust bundle: what services trust, and those who follow it.

use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt as _};
use weft_proto::ca::Bundle;

/// Hands the current bundle to everybody who asks, and each new one to those who follow.
///
/// A follower that reads slowly misses versions in between, never the last one, and holds nothing but its place.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// `None` once nobody is served any more; the streams end then.
    current: watch::Sender<Option<Bundle>>,
}

impl Publisher {
    /// With the first bundle.
    pub(crate) fn new(trust_domain: &str, roots: Vec<Vec<u8>>) -> Self {
        // The number of a state with one root that was never rotated.
        let bundle = Bundle {
            trust_domain: trust_domain.to_owned(),
            roots,
            sequence: 1,
        };
        Self {
            current: watch::Sender::new(Some(bundle)),
        }
    }

    /// The bundle now.
    pub(crate) fn current(&self) -> Option<Bundle> {
        self.current.borrow().clone()
    }

    /// The bundle now, then each change, until [`Publisher::close`].
    pub(crate) fn follow(&self) -> impl Stream<Item = Bundle> + Send + use<> {
        WatchStream::new(self.current.subscribe()).map_while(|bundle| bundle)
    }

    /// Ends all streams.
    pub(crate) fn close(&self) {
        self.current.send_replace(None);
    }

    /// Other roots from now on.
    // Called by the rotation of the root, which is not there yet; its tests keep it true.
    #[cfg(test)]
    pub(crate) fn publish(&self, roots: Vec<Vec<u8>>) {
        self.current.send_modify(|bundle| {
            if let Some(bundle) = bundle {
                bundle.roots = roots;
                bundle.sequence += 1;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn a_follower_gets_the_current_bundle_at_once_then_changes_then_the_end() {
        let publisher = Publisher::new("shop.internal", vec![vec![1]]);
        let mut early = std::pin::pin!(publisher.follow());
        let first = early.next().await.unwrap();
        assert_eq!((first.sequence, first.roots), (1, vec![vec![1]]));
        publisher.publish(vec![vec![1], vec![2]]);
        publisher.publish(vec![vec![2]]);
        let last = early.next().await.unwrap();
        assert_eq!(
            (last.sequence, last.roots),
            (3, vec![vec![2]]),
            "only the last of two quick changes"
        );
        let mut late = std::pin::pin!(publisher.follow());
        assert_eq!(late.next().await.unwrap().sequence, 3);
        publisher.close();
        assert_eq!(early.next().await, None);
        assert_eq!(late.next().await, None);
        assert_eq!(publisher.current(), None);
    }
}
