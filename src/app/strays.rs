//! Rows that name this node for a session that it does not serve.

use crate::{
    ids::{Epoch, Incarnation, SessionId},
    session::Registry,
    store::{self, SessionFilter, Store},
};

/// Rows of one look.
const ROWS: u32 = 1_000;

/// Sessions whose rows name this node though it serves none such: whoever asked for one was
/// gone when the claim was answered, or it was handed over and nobody has come for it. They
/// would count against their principal for as long as this node lives.
#[derive(Default)]
pub(super) struct Strays {
    /// Where the next look at our rows begins.
    after: Option<SessionId>,
    /// What the last look found.
    seen: Vec<(SessionId, Epoch)>,
}

impl Strays {
    /// Releases those that were strays at the last look and still are, and looks at the next
    /// [`ROWS`] of our rows. A session that is being opened all the same is claimed under
    /// another epoch, before this release or after it.
    pub(super) async fn release(
        &mut self,
        store: &dyn Store,
        registry: &Registry,
        me: Incarnation,
    ) -> store::Result<()> {
        for (id, epoch) in std::mem::take(&mut self.seen) {
            if !registry.keeps(id) && store.release(id, me, epoch).await? {
                tracing::debug!(session = %id, "released a session that nobody opened");
            }
        }
        let filter = SessionFilter {
            owner: Some(me),
            after: self.after,
            limit: ROWS,
            ..SessionFilter::default()
        };
        let rows = store.sessions(&filter).await?;
        let more = rows.len() == ROWS as usize;
        self.after = rows.last().filter(|_| more).map(|row| row.id);
        let strays = rows.iter().filter(|row| !registry.keeps(row.id));
        self.seen = strays.map(|row| (row.id, row.epoch)).collect();
        Ok(())
    }
}
