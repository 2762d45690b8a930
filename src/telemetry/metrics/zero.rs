//! Series that are there before anything happened: a name that is missing from a scrape reads
//! as a broken scrape, and a counter that is first seen with its first event shows no increase.
//!
//! Counters and gauges get all of their label sets. A histogram has up to seventeen lines, so
//! it gets one, but for handoffs and attaches at peers, whose failures are rare and watched.

use super::{
    ArchiveFailure, ClaimOutcome, CopyOutcome, Direction, HandoffOutcome, HandoffReason,
    LedgerRefusal, LedgerWrite, Metrics, Outcome, Place, QuotaLimit, ResumeOutcome, Side,
    StoreFailure, TakeoverReason, TurnOutcome,
    labels::{
        ByArchiveFailure, ByClaim, ByCopy, ByDial, ByDirection, ByError, ByHandoff,
        ByLedgerRefusal, ByLedgerWrite, ByOperation, ByOutcome, ByPlace, ByProfile, ByQuota,
        ByResume, ByRoute, BySide, ByStoreFailure, ByTakeover, ByTurn, ByUpstream,
    },
};
use crate::{config::Profile, error::Code};

/// The store's operation that every node does from its start.
const HEARTBEAT: &str = "heartbeat";

impl Metrics {
    /// What has no label, or labels from closed lists.
    pub(super) fn touch_all(&self) {
        let all = &self.0;
        self.ring(0, []);
        for &side in Side::ALL {
            drop(all.not_owner.get_or_create(&BySide { side }));
            drop(all.peer_connections.get_or_create(&BySide { side }));
        }
        // Blame may be laid elsewhere, which is rare.
        for &code in Code::ALL {
            let labels = ByError { code: code.as_str(), blame: code.blame().label() };
            drop(all.errors.get_or_create(&labels));
        }
        for &outcome in ClaimOutcome::ALL {
            drop(all.claims.get_or_create(&ByClaim { outcome }));
        }
        for &reason in TakeoverReason::ALL {
            drop(all.takeovers.get_or_create(&ByTakeover { reason }));
        }
        for &reason in HandoffReason::ALL {
            for &outcome in HandoffOutcome::ALL {
                let labels = ByHandoff { reason, outcome };
                drop(all.handoffs.get_or_create(&labels));
                drop(all.handoff_seconds.get_or_create(&labels));
            }
        }
        drop(all.store_seconds.get_or_create(&ByOperation { operation: HEARTBEAT }));
        for &reason in StoreFailure::ALL {
            let labels = ByStoreFailure { operation: HEARTBEAT, reason };
            drop(all.store_errors.get_or_create(&labels));
        }
        for &write in LedgerWrite::ALL {
            drop(all.ledger_batch.get_or_create(&ByLedgerWrite { write }));
        }
        for &reason in LedgerRefusal::ALL {
            drop(all.ledger_refusals.get_or_create(&ByLedgerRefusal { reason }));
        }
        for &limit in QuotaLimit::ALL {
            drop(all.quota_refusals.get_or_create(&ByQuota { limit }));
        }
        for &reason in ArchiveFailure::ALL {
            drop(all.conversation_failures.get_or_create(&ByArchiveFailure { reason }));
        }
        for &outcome in CopyOutcome::ALL {
            drop(all.conversation_copies.get_or_create(&ByCopy { outcome }));
        }
        for &outcome in Outcome::ALL {
            drop(all.forward.get_or_create(&ByOutcome { outcome }));
        }
    }

    /// A route is served: its series are there from now on. Turns too where its profile knows
    /// none, so that names do not depend on the configuration.
    pub fn route(&self, path: &str, profile: Profile) {
        let all = &self.0;
        let route = || path.to_owned();
        let labels = ByProfile { route: route(), profile: profile.as_str() };
        drop(all.sessions.get_or_create(&labels));
        for &place in Place::ALL {
            let labels = ByPlace { route: route(), place };
            drop(all.clients.get_or_create(&labels));
            drop(all.slow_clients.get_or_create(&labels));
        }
        for &direction in Direction::ALL {
            let labels = ByDirection { route: route(), direction };
            drop(all.frames.get_or_create(&labels));
            drop(all.frame_bytes.get_or_create(&labels));
            drop(all.forwarded_frames.get_or_create(&labels));
        }
        for &outcome in ResumeOutcome::ALL {
            drop(all.resumes.get_or_create(&ByResume { route: route(), outcome }));
        }
        for &outcome in TurnOutcome::ALL {
            drop(all.turns.get_or_create(&ByTurn { route: route(), outcome }));
        }
        let completed = ByTurn { route: route(), outcome: TurnOutcome::Completed };
        drop(all.turn_seconds.get_or_create(&completed));
        let labels = ByRoute { route: route() };
        drop(all.replay_bytes.get_or_create(&labels));
        drop(all.turn_queue.get_or_create(&labels));
        drop(all.turn_first_event.get_or_create(&labels));
    }

    /// An upstream may be dialled: its series are there from now on.
    pub fn upstream(&self, name: &str) {
        let upstream = || name.to_owned();
        drop(self.0.upstream_connections.get_or_create(&ByUpstream { upstream: upstream() }));
        for &outcome in Outcome::ALL {
            drop(self.0.upstream_dials.get_or_create(&ByDial { upstream: upstream(), outcome }));
        }
    }
}
