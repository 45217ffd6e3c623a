//! Who we are, as far as that is known: a gateway may begin without an identity and need one after a reload.

use std::sync::Arc;

use tokio::sync::SetOnce;

use super::Identity;

/// The place of this process's identity, shared by all its threads. Empty or filled for good; looking takes no lock.
#[derive(Debug, Clone, Default)]
pub struct Ours(Arc<SetOnce<Arc<Identity>>>);

impl Ours {
    /// The identity, if there is one by now.
    pub fn get(&self) -> Option<&Arc<Identity>> {
        self.0.get()
    }

    /// It is this one. The first stays: a process does not become another one.
    pub fn set(&self, identity: Arc<Identity>) {
        let _: Result<(), _> = self.0.set(identity);
    }

    /// Waits until there is one. May be dropped at any time.
    pub async fn known(&self) {
        self.0.wait().await;
    }
}

impl From<Arc<Identity>> for Ours {
    fn from(identity: Arc<Identity>) -> Self {
        let ours = Self::default();
        ours.set(identity);
        ours
    }
}
