//! The places of sessions in the registry, and who gives them back.

use std::sync::{Arc, Weak};

use tokio::sync::OnceCell;

use super::{Handle, Registry};
use crate::ids::SessionId;

/// One session, perhaps still being opened. Whoever comes first opens; others wait for it.
#[derive(Default)]
pub(super) struct Slot(pub(super) OnceCell<Handle>);

/// An attach under way. However it ends, it leaves no slot behind that nobody opens.
pub(super) struct Opening<'a> {
    pub(super) registry: &'a Registry,
    pub(super) id: SessionId,
    pub(super) slot: Arc<Slot>,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.registry.abandon(self.id, &self.slot);
    }
}

/// A session's task. However it ends, by a panic too, it leaves no slot behind.
pub(super) struct Stay {
    registry: Weak<Registry>,
    id: SessionId,
    slot: Weak<Slot>,
}

impl Stay {
    pub(super) fn new(registry: &Arc<Registry>, id: SessionId, slot: &Arc<Slot>) -> Self {
        Self { registry: Arc::downgrade(registry), id, slot: Arc::downgrade(slot) }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        if let (Some(registry), Some(slot)) = (self.registry.upgrade(), self.slot.upgrade()) {
            registry.forget(self.id, &slot);
        }
    }
}
