//! Claims and their fences, aliases.

use std::time::Duration;

use sqlx::{QueryBuilder, Row, Sqlite as Db, query::Query, sqlite::SqliteArguments};

use super::{Sqlite, members::millis, now_ms};
use crate::{
    ids::{Epoch, Incarnation, Principal, SessionId},
    store::{
        Alias, AliasKind, Claim, Claimed, Result, SessionFilter, SessionRow, SessionState,
        Transferred,
        sql::{bytes16, foreign_row, session},
    },
};

/// `?1` is the time; the conditions follow.
macro_rules! select_sessions {
    ($conditions:literal) => {
        concat!(
            "SELECT s.id, s.principal, s.route, s.key_label, s.owner, s.epoch, s.state, \
             m.state AS owner_state, m.peer_addr AS owner_addr, \
             (?1 - s.created_at) * 1000 AS age_us \
             FROM session s LEFT JOIN member m ON m.incarnation = s.owner WHERE ",
            $conditions
        )
    };
}

const SESSION: &str = select_sessions!("s.id = ?2");

const NEXT_EPOCH: &str = "UPDATE ring_meta SET epoch = epoch + 1 RETURNING epoch";

/// A statement that touches one session only while it is ours in that epoch: `?1` to `?3`
/// are its id, owner and epoch, `?4` the time.
fn fenced(
    sql: &'static str,
    id: SessionId,
    me: Incarnation,
    epoch: Epoch,
) -> Query<'static, Db, SqliteArguments> {
    sqlx::query(sql).bind(id.0.to_vec()).bind(me.0).bind(epoch.0).bind(now_ms())
}

impl Sqlite {
    pub(super) async fn claim(&self, claim: &Claim) -> Result<Claimed> {
        let mut tx = self.write().await?;
        let now = now_ms();
        let fit: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM member WHERE incarnation = ?1 \
             AND state IN ('JOINING', 'ACTIVE') AND lease_expires_at > ?2)",
        )
        .bind(claim.me.0)
        .bind(now)
        .fetch_one(&mut *tx)
        .await?;
        if !fit {
            return Ok(Claimed::Fenced);
        }
        let row =
            sqlx::query(SESSION).bind(now).bind(&claim.id.0[..]).fetch_optional(&mut *tx).await?;
        let row = row.as_ref().map(session).transpose()?;
        if row.as_ref().is_some_and(|row| row.principal != claim.principal) {
            return Err(foreign_row());
        }
        let from = match row {
            Some(row) => {
                if !claim.would_win(&row) {
                    return Ok(Claimed::Lost(row));
                }
                row.owner.filter(|owner| *owner != claim.me)
            }
            None => None,
        };
        if super::quotas::is_full(&mut tx, claim).await? {
            return Ok(Claimed::Full);
        }
        let epoch: i64 = sqlx::query_scalar(NEXT_EPOCH).fetch_one(&mut *tx).await?;
        let epoch: i64 = sqlx::query_scalar(
            "INSERT INTO session (id, principal, route, key_label, owner, epoch, state, \
             created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'LIVE', ?7, ?7) \
             ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, state = 'LIVE', \
             epoch = MAX(session.epoch + 1, excluded.epoch), taken_from = ?8, updated_at = ?7 \
             RETURNING epoch",
        )
        .bind(&claim.id.0[..])
        .bind(&claim.principal.0[..])
        .bind(&claim.route)
        .bind(&claim.key_label)
        .bind(claim.me.0)
        .bind(epoch)
        .bind(now)
        .bind(from.map(|from| from.0))
        .fetch_one(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Claimed::Won { epoch: Epoch(epoch), from })
    }

    pub(super) async fn session(&self, id: SessionId) -> Result<Option<SessionRow>> {
        let query = sqlx::query(SESSION).bind(now_ms()).bind(&id.0[..]);
        self.optional(query).await?.as_ref().map(session).transpose()
    }

    pub(super) async fn sessions(&self, filter: &SessionFilter) -> Result<Vec<SessionRow>> {
        let mut query = QueryBuilder::<Db>::new(
            "SELECT s.id, s.principal, s.route, s.key_label, s.owner, s.epoch, s.state, \
             m.state AS owner_state, m.peer_addr AS owner_addr, (",
        );
        query.push_bind(now_ms()).push(
            " - s.created_at) * 1000 AS age_us \
             FROM session s LEFT JOIN member m ON m.incarnation = s.owner WHERE true",
        );
        if let Some(owner) = filter.owner {
            query.push(" AND s.owner = ").push_bind(owner.0);
        }
        if let Some(label) = &filter.key_label {
            query.push(" AND s.key_label = ").push_bind(label);
            if !label.is_empty() {
                // The index has no others.
                query.push(" AND s.key_label <> ''");
            }
        }
        if let Some(after) = filter.after {
            query.push(" AND s.id > ").push_bind(after.0.to_vec());
        }
        query.push(" ORDER BY s.id LIMIT ").push_bind(i64::from(filter.limit));
        let rows = self.all(query.build()).await?;
        rows.iter().map(session).collect()
    }

    pub(super) async fn retire(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        age: Duration,
    ) -> Result<bool> {
        const RETIRE: &str = "UPDATE session SET owner = NULL, state = 'CLOSED', \
             updated_at = ?4 - ?5 WHERE id = ?1 AND owner = ?2 AND epoch = ?3";
        let query = fenced(RETIRE, id, me, epoch).bind(millis(age));
        Ok(self.execute(query).await? > 0)
    }

    pub(super) async fn set_state(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        state: SessionState,
    ) -> Result<bool> {
        const SET_STATE: &str = "UPDATE session SET state = ?5, updated_at = ?4 \
             WHERE id = ?1 AND owner = ?2 AND epoch = ?3";
        let query = fenced(SET_STATE, id, me, epoch).bind(state.as_str());
        Ok(self.execute(query).await? > 0)
    }

    pub(super) async fn transfer(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        heir: Incarnation,
        forced: bool,
    ) -> Result<Transferred> {
        const TRANSFER: &str = "UPDATE session SET owner = ?5, state = 'LIVE', \
             epoch = MAX(epoch + 1, ?6), taken_from = NULLIF(owner, ?5), updated_at = ?4 \
             WHERE id = ?1 AND owner = ?2 AND epoch = ?3 RETURNING epoch";
        let mut tx = self.write().await?;
        let now = now_ms();
        let row = sqlx::query(SESSION).bind(now).bind(&id.0[..]).fetch_optional(&mut *tx).await?;
        match row.as_ref().map(session).transpose()? {
            Some(row) if row.owner != Some(me) || row.epoch != epoch => {
                return Ok(Transferred::NotOwner);
            }
            Some(row) if row.state != SessionState::Quiescing => {
                return Ok(Transferred::NotQuiescing);
            }
            Some(_) => {}
            None => return Ok(Transferred::NotOwner),
        }
        let fit: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM member WHERE incarnation = ?1 \
             AND state = 'ACTIVE' AND lease_expires_at > ?2)",
        )
        .bind(heir.0)
        .bind(now)
        .fetch_one(&mut *tx)
        .await?;
        if !fit {
            return Ok(Transferred::HeirUnfit);
        }
        let running: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM turn WHERE session = ?1 \
             AND state IN ('DISPATCHED', 'VISIBLE'))",
        )
        .bind(&id.0[..])
        .fetch_one(&mut *tx)
        .await?;
        if running && !forced {
            return Ok(Transferred::TurnsRunning);
        }
        let next: i64 = sqlx::query_scalar(NEXT_EPOCH).fetch_one(&mut *tx).await?;
        let row =
            fenced(TRANSFER, id, me, epoch).bind(heir.0).bind(next).fetch_one(&mut *tx).await?;
        let epoch = Epoch(row.try_get("epoch")?);
        tx.commit().await?;
        Ok(Transferred::Moved(epoch))
    }

    pub(super) async fn put_aliases(&self, aliases: &[Alias]) -> Result<()> {
        if aliases.is_empty() {
            return Ok(());
        }
        let mut tx = self.write().await?;
        let now = now_ms();
        for alias in aliases {
            sqlx::query(
                "INSERT INTO alias (principal, kind, digest, session, updated_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (principal, kind, digest) \
                 DO UPDATE SET session = excluded.session, updated_at = excluded.updated_at",
            )
            .bind(&alias.principal.0[..])
            .bind(alias.kind.as_str())
            .bind(&alias.digest[..])
            .bind(&alias.session.0[..])
            .bind(now)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await
    }

    pub(super) async fn alias(
        &self,
        principal: Principal,
        kind: AliasKind,
        digest: [u8; 16],
    ) -> Result<Option<SessionId>> {
        const ALIAS: &str =
            "SELECT session FROM alias WHERE principal = ?1 AND kind = ?2 AND digest = ?3";
        let query = sqlx::query(ALIAS).bind(&principal.0[..]).bind(kind.as_str()).bind(&digest[..]);
        self.optional(query)
            .await?
            .map(|row| bytes16(&row.try_get::<Vec<u8>, _>(0)?, "alias.session").map(SessionId))
            .transpose()
    }
}
