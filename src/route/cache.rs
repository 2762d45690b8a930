//! Who owned a session when we last heard. A hint: the owner itself says whether it is true.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::{ids::SessionId, session::Owner};

/// Sessions remembered. About 150 bytes each.
const CAPACITY: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct OwnerCache(Mutex<HashMap<SessionId, Owner>>);

impl OwnerCache {
    pub(super) fn get(&self, id: SessionId) -> Option<Owner> {
        self.0.lock().get(&id).cloned()
    }

    /// Remembers an owner, unless a later one is known already.
    pub(super) fn put(&self, id: SessionId, owner: Owner) {
        let mut owners = self.0.lock();
        if owners.len() >= CAPACITY && !owners.contains_key(&id) {
            // Ids are hashes, so an arbitrary half is a random half.
            let mut keep = false;
            owners.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
        let entry = owners.entry(id).or_insert_with(|| owner.clone());
        if entry.epoch <= owner.epoch {
            *entry = owner;
        }
    }

    pub(super) fn remove(&self, id: SessionId) {
        self.0.lock().remove(&id);
    }
}
