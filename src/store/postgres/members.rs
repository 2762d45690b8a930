//! Members and the ring: leases, states, and the version that counts their changes.

use std::time::Duration;

use sqlx::Row;
use tokio::time::timeout_at;

use super::{Postgres, no_meta};
use crate::{
    ids::Incarnation,
    store::{
        Death, Heartbeat, LeaseEnd, MemberState, NewMember, Result, RingView, StoreError,
        sql::{from_micros, judged, member, member_state, micros},
    },
};

/// How often a call starts over when a concurrent one changed what it had read.
const ATTEMPTS: u32 = 3;

/// A change of one member that, if it happens, bumps the version and announces it, all in
/// one statement. NOTIFY serialises commits, so nothing but this may use it.
macro_rules! ring_change {
    ($change:literal) => {
        concat!(
            "WITH changed AS (",
            $change,
            " RETURNING incarnation), bump AS (UPDATE ring_meta SET version = version + 1 \
             WHERE EXISTS (SELECT 1 FROM changed) RETURNING version) \
             SELECT incarnation, pg_notify('ringspan_ring', version::text)::text AS told \
             FROM changed, bump"
        )
    };
}

const BURY_EARLIER: &str = "UPDATE member SET state = 'DEAD', ended_at = clock_timestamp() \
     WHERE node_id = $1 AND state IN ('JOINING', 'ACTIVE', 'DRAINING') AND $2";

const HOLDER: &str = "SELECT incarnation, \
     (extract(epoch FROM lease_expires_at - clock_timestamp()) * 1000000)::bigint AS remaining_us, \
     (extract(epoch FROM lease_expires_at) * 1000000)::bigint AS lease \
     FROM member WHERE node_id = $1 AND state IN ('JOINING', 'ACTIVE', 'DRAINING')";

const INSERT: &str = ring_change!(
    "INSERT INTO member (node_id, peer_addr, build, zone, weight, capacity, process, \
     lease_expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, \
     clock_timestamp() + $8 * interval '1 microsecond')"
);

const HEARTBEAT: &str = "UPDATE member SET \
     lease_expires_at = clock_timestamp() + $2 * interval '1 microsecond', load = $3 \
     WHERE incarnation = $1 AND state IN ('JOINING', 'ACTIVE', 'DRAINING') \
     RETURNING state, (SELECT version FROM ring_meta) AS version";

const RING: &str = "SELECT r.version, m.incarnation, m.node_id, m.peer_addr, m.build, m.zone, \
     m.weight, m.capacity, m.process, m.state, m.load, \
     (extract(epoch FROM m.lease_expires_at - clock_timestamp()) * 1000000)::bigint \
     AS remaining_us, (extract(epoch FROM m.lease_expires_at) * 1000000)::bigint AS lease, \
     (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS clock_us \
     FROM ring_meta r LEFT JOIN member m \
     ON m.state IN ('JOINING', 'ACTIVE', 'DRAINING') \
     OR EXISTS (SELECT 1 FROM session s WHERE s.owner = m.incarnation) ORDER BY m.incarnation";

impl Postgres {
    pub(super) async fn register(&self, new: &NewMember, ttl: Duration) -> Result<Incarnation> {
        let mut connection = self.checkout().await?;
        let deadline = connection.deadline;
        let work = async {
            let mut tx = connection.transaction().await?;
            // Two first starts of one node id take turns.
            sqlx::query(
                "SELECT pg_advisory_xact_lock(hashtextextended('ringspan/node/' || $1, 0))",
            )
            .bind(&new.node_id)
            .execute(&mut *tx)
            .await?;
            sqlx::query(BURY_EARLIER)
                .bind(&new.node_id)
                .bind(new.supersede)
                .execute(&mut *tx)
                .await?;
            let holder = sqlx::query(HOLDER).bind(&new.node_id).fetch_optional(&mut *tx).await?;
            if let Some(holder) = holder {
                tx.rollback().await?;
                return Ok(Err((holder.try_get(0)?, holder.try_get(1)?, holder.try_get(2)?)));
            }
            // Incarnations are handed out in the order in which registrations are seen: who has
            // a higher one has read a view with all lower ones (see `ownership::reaper`).
            sqlx::query("SELECT 1 FROM ring_meta FOR UPDATE").execute(&mut *tx).await?;
            let row = sqlx::query(INSERT)
                .bind(&new.node_id)
                .bind(&new.peer_addr)
                .bind(&new.build)
                .bind(&new.zone)
                .bind(i64::from(new.weight))
                .bind(i64::from(new.capacity))
                .bind(&new.process)
                .bind(micros(ttl))
                .fetch_one(&mut *tx)
                .await?;
            tx.commit().await?;
            row.try_get::<i64, _>("incarnation").map(Ok)
        };
        let outcome = timeout_at(deadline, work).await;
        connection.settle(outcome)?.map(Incarnation).map_err(|(holder, remaining, lease)| {
            StoreError::NodeIdInUse {
                node_id: new.node_id.clone(),
                holder: Incarnation(holder),
                remaining: from_micros(remaining),
                lease: LeaseEnd(lease),
            }
        })
    }

    pub(super) async fn heartbeat(
        &self,
        me: Incarnation,
        ttl: Duration,
        load: u32,
    ) -> Result<Heartbeat> {
        let query = sqlx::query(HEARTBEAT).bind(me.0).bind(micros(ttl)).bind(i64::from(load));
        let row = self.optional(query).await?.ok_or(StoreError::Fenced(me))?;
        Ok(Heartbeat {
            ring_version: row.try_get("version")?,
            state: member_state(&row.try_get::<String, _>("state")?)?,
        })
    }

    pub(super) async fn activate(&self, me: Incarnation) -> Result<()> {
        const ACTIVATE: &str = ring_change!(
            "UPDATE member SET state = 'ACTIVE' WHERE incarnation = $1 AND state = 'JOINING'"
        );
        if self.optional(sqlx::query(ACTIVATE).bind(me.0)).await?.is_none() {
            self.living(me).await?;
        }
        Ok(())
    }

    pub(super) async fn begin_drain(&self, node: Incarnation) -> Result<bool> {
        const DRAIN: &str = ring_change!(
            "UPDATE member SET state = 'DRAINING' \
             WHERE incarnation = $1 AND state IN ('JOINING', 'ACTIVE')"
        );
        if self.optional(sqlx::query(DRAIN).bind(node.0)).await?.is_some() {
            return Ok(true);
        }
        self.living(node).await.map(|()| false)
    }

    pub(super) async fn leave(&self, me: Incarnation) -> Result<u64> {
        const LEAVE: &str = ring_change!(
            "UPDATE member SET state = 'GONE', ended_at = clock_timestamp() \
             WHERE incarnation = $1 AND state IN ('JOINING', 'ACTIVE', 'DRAINING') \
             AND NOT EXISTS (SELECT 1 FROM session WHERE owner = $1)"
        );
        const LEFT: &str = "SELECT state, (SELECT count(*) FROM session WHERE owner = $1) AS owned \
             FROM member WHERE incarnation = $1";
        for _ in 0..ATTEMPTS {
            if self.optional(sqlx::query(LEAVE).bind(me.0)).await?.is_some() {
                return Ok(0);
            }
            let row = self.optional(sqlx::query(LEFT).bind(me.0)).await?;
            let row = row.ok_or(StoreError::Fenced(me))?;
            let owned: i64 = row.try_get("owned")?;
            match member_state(&row.try_get::<String, _>("state")?)? {
                MemberState::Gone => return Ok(0),
                MemberState::Dead => return Err(StoreError::Fenced(me)),
                // The last one was released between the two statements: leave again.
                _ if owned == 0 => {}
                _ => return Ok(u64::try_from(owned).unwrap_or(u64::MAX)),
            }
        }
        Err(StoreError::Unavailable("sessions keep coming and going".into()))
    }

    pub(super) async fn mark_dead(&self, node: Incarnation, death: Death) -> Result<bool> {
        const BURY: &str = ring_change!(
            "UPDATE member SET state = 'DEAD', ended_at = clock_timestamp() \
             WHERE incarnation = $1 AND state IN ('JOINING', 'ACTIVE', 'DRAINING') \
             AND ($2::bigint IS NULL OR lease_expires_at <= clock_timestamp() \
             AND (extract(epoch FROM lease_expires_at) * 1000000)::bigint = $2)"
        );
        let row = self.optional(sqlx::query(BURY).bind(node.0).bind(judged(death))).await?;
        Ok(row.is_some())
    }

    pub(super) async fn ring(&self) -> Result<RingView> {
        let rows = self.all(sqlx::query(RING)).await?;
        let first = rows.first().ok_or_else(no_meta)?;
        let (version, clock) = (first.try_get("version")?, from_micros(first.try_get("clock_us")?));
        let members = rows
            .iter()
            // Without members the outer join still answers one row, for the version.
            .filter(|row| matches!(row.try_get::<Option<i64>, _>("incarnation"), Ok(Some(_))))
            .map(member)
            .collect::<Result<_>>()?;
        Ok(RingView { version, clock, members })
    }

    /// Refuses incarnations that are dead, gone or unknown.
    async fn living(&self, node: Incarnation) -> Result<()> {
        let query = sqlx::query("SELECT state FROM member WHERE incarnation = $1").bind(node.0);
        let state = match self.optional(query).await? {
            Some(row) => member_state(&row.try_get::<String, _>("state")?)?,
            None => MemberState::Gone,
        };
        if state.is_alive() { Ok(()) } else { Err(StoreError::Fenced(node)) }
    }
}
