//! A listener as the plan in force has it, for those of its connections that one core serves.
//!
//! They share it, and the core brings it up to date also when none of them asks: a connection with one of its own would keep
//! the plan of its last exchange alive as long as it idles, and ten thousand of them as many plans as there were reloads.

use std::cell::RefCell;
use std::sync::Arc;

use super::{Plan, Site};

/// The plan that was last asked, and the listener in it.
#[derive(Debug)]
pub struct Current(RefCell<(Arc<Plan>, Arc<Site>)>);

impl Current {
    /// The listener `site` of `plan`.
    pub fn new(plan: Arc<Plan>, site: Arc<Site>) -> Self {
        Self(RefCell::new((plan, site)))
    }

    /// The listener as `plan` has it. One that a new plan no longer has stays as it was for its last connections.
    pub fn site(&self, plan: Arc<Plan>) -> Arc<Site> {
        let mut current = self.0.borrow_mut();
        if !Arc::ptr_eq(&current.0, &plan) {
            if let Some(site) = plan.site(&current.1.name) {
                current.1 = Arc::clone(site);
            }
            current.0 = plan;
        }
        Arc::clone(&current.1)
    }
}
