//! Members and the ring: leases, states, and the version that counts their changes.

use std::time::Duration;

use sqlx::{Row, SqliteConnection};

use super::{Sqlite, no_meta, now_ms};
use crate::{
    ids::Incarnation,
    store::{
        Death, Heartbeat, LeaseEnd, MemberState, NewMember, Result, RingView, StoreError,
        sql::{from_micros, judged, member, member_state, micros},
    },
};

/// A lease or an age in the unit of the file.
pub(super) fn millis(duration: Duration) -> i64 {
    micros(duration) / 1000
}

async fn bump(tx: &mut SqliteConnection) -> Result<()> {
    sqlx::query("UPDATE ring_meta SET version = version + 1").execute(tx).await?;
    Ok(())
}

async fn state(tx: &mut SqliteConnection, node: Incarnation) -> Result<Option<MemberState>> {
    let word: Option<String> =
        sqlx::query_scalar("SELECT state FROM member WHERE incarnation = ?1")
            .bind(node.0)
            .fetch_optional(tx)
            .await?;
    word.as_deref().map(member_state).transpose()
}

async fn set_state(tx: &mut SqliteConnection, node: Incarnation, state: MemberState) -> Result<()> {
    let ended = if state.is_alive() { None } else { Some(now_ms()) };
    sqlx::query("UPDATE member SET state = ?2, ended_at = ?3 WHERE incarnation = ?1")
        .bind(node.0)
        .bind(state.as_str())
        .bind(ended)
        .execute(tx)
        .await?;
    Ok(())
}

impl Sqlite {
    pub(super) async fn register(&self, new: &NewMember, ttl: Duration) -> Result<Incarnation> {
        let mut tx = self.write().await?;
        let now = now_ms();
        let holder = sqlx::query(
            "SELECT incarnation, lease_expires_at FROM member \
             WHERE node_id = ?1 AND state IN ('JOINING', 'ACTIVE', 'DRAINING')",
        )
        .bind(&new.node_id)
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(holder) = holder {
            let incarnation = Incarnation(holder.try_get(0)?);
            let lease: i64 = holder.try_get(1)?;
            let remaining = lease.saturating_sub(now);
            if !new.supersede {
                return Err(StoreError::NodeIdInUse {
                    node_id: new.node_id.clone(),
                    holder: incarnation,
                    remaining: from_micros(remaining.max(0).saturating_mul(1000)),
                    lease: LeaseEnd(lease),
                });
            }
            set_state(&mut tx, incarnation, MemberState::Dead).await?;
        }
        let me: i64 = sqlx::query_scalar(
            "UPDATE ring_meta SET incarnation = incarnation + 1, version = version + 1 \
             RETURNING incarnation",
        )
        .fetch_one(&mut *tx)
        .await?;
        sqlx::query(
            "INSERT INTO member (incarnation, node_id, peer_addr, build, zone, weight, capacity, \
             process, lease_expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )
        .bind(me)
        .bind(&new.node_id)
        .bind(&new.peer_addr)
        .bind(&new.build)
        .bind(&new.zone)
        .bind(i64::from(new.weight))
        .bind(i64::from(new.capacity))
        .bind(&new.process)
        .bind(now.saturating_add(millis(ttl)))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Incarnation(me))
    }

    pub(super) async fn heartbeat(
        &self,
        me: Incarnation,
        ttl: Duration,
        load: u32,
    ) -> Result<Heartbeat> {
        // The clock is read under the lock: time spent waiting for it is not given away.
        let mut tx = self.write().await?;
        let row = sqlx::query(
            "UPDATE member SET lease_expires_at = ?2, load = ?3 \
             WHERE incarnation = ?1 AND state IN ('JOINING', 'ACTIVE', 'DRAINING') \
             RETURNING state, (SELECT version FROM ring_meta) AS version",
        )
        .bind(me.0)
        .bind(now_ms().saturating_add(millis(ttl)))
        .bind(i64::from(load))
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(StoreError::Fenced(me))?;
        tx.commit().await?;
        Ok(Heartbeat {
            ring_version: row.try_get("version")?,
            state: member_state(&row.try_get::<String, _>("state")?)?,
        })
    }

    pub(super) async fn activate(&self, me: Incarnation) -> Result<()> {
        let mut tx = self.write().await?;
        match state(&mut tx, me).await? {
            Some(MemberState::Joining) => {
                set_state(&mut tx, me, MemberState::Active).await?;
                bump(&mut tx).await?;
                tx.commit().await
            }
            Some(state) if state.is_alive() => Ok(()),
            _ => Err(StoreError::Fenced(me)),
        }
    }

    pub(super) async fn begin_drain(&self, node: Incarnation) -> Result<bool> {
        let mut tx = self.write().await?;
        match state(&mut tx, node).await? {
            Some(MemberState::Joining | MemberState::Active) => {
                set_state(&mut tx, node, MemberState::Draining).await?;
                bump(&mut tx).await?;
                tx.commit().await?;
                Ok(true)
            }
            Some(MemberState::Draining) => Ok(false),
            _ => Err(StoreError::Fenced(node)),
        }
    }

    pub(super) async fn leave(&self, me: Incarnation) -> Result<u64> {
        let mut tx = self.write().await?;
        match state(&mut tx, me).await? {
            Some(MemberState::Gone) => return Ok(0),
            Some(state) if state.is_alive() => {}
            _ => return Err(StoreError::Fenced(me)),
        }
        let owned: i64 = sqlx::query_scalar("SELECT count(*) FROM session WHERE owner = ?1")
            .bind(me.0)
            .fetch_one(&mut *tx)
            .await?;
        if owned == 0 {
            set_state(&mut tx, me, MemberState::Gone).await?;
            bump(&mut tx).await?;
            tx.commit().await?;
        }
        Ok(u64::try_from(owned).unwrap_or(u64::MAX))
    }

    pub(super) async fn mark_dead(&self, node: Incarnation, death: Death) -> Result<bool> {
        let mut tx = self.write().await?;
        let changed = sqlx::query(
            "UPDATE member SET state = 'DEAD', ended_at = ?2 \
             WHERE incarnation = ?1 AND state IN ('JOINING', 'ACTIVE', 'DRAINING') \
             AND (?3 IS NULL OR lease_expires_at <= ?2 AND lease_expires_at = ?3)",
        )
        .bind(node.0)
        .bind(now_ms())
        .bind(judged(death))
        .execute(&mut *tx)
        .await?
        .rows_affected();
        if changed > 0 {
            bump(&mut tx).await?;
            tx.commit().await?;
        }
        Ok(changed > 0)
    }

    pub(super) async fn ring(&self) -> Result<RingView> {
        let now = now_ms();
        let query = sqlx::query(
            "SELECT r.version, m.incarnation, m.node_id, m.peer_addr, m.build, m.zone, m.weight, \
             m.capacity, m.process, m.state, m.load, \
             (m.lease_expires_at - ?1) * 1000 AS remaining_us, m.lease_expires_at AS lease \
             FROM ring_meta r LEFT JOIN member m \
             ON m.state IN ('JOINING', 'ACTIVE', 'DRAINING') \
             OR EXISTS (SELECT 1 FROM session s WHERE s.owner = m.incarnation) \
             ORDER BY m.incarnation",
        )
        .bind(now);
        let rows = self.all(query).await?;
        let version = rows.first().ok_or_else(no_meta)?.try_get("version")?;
        let members = rows
            .iter()
            // Without members the outer join still answers one row, for the version.
            .filter(|row| matches!(row.try_get::<Option<i64>, _>("incarnation"), Ok(Some(_))))
            .map(member)
            .collect::<Result<_>>()?;
        let clock = Duration::from_millis(u64::try_from(now).unwrap_or(0));
        Ok(RingView { version, clock, members })
    }

    pub(super) async fn version(&self) -> Result<i64> {
        let query = sqlx::query("SELECT version FROM ring_meta");
        Ok(self.optional(query).await?.ok_or_else(no_meta)?.try_get(0)?)
    }
}
