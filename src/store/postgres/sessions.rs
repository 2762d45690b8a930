//! Claims and their fences, aliases.

use std::{collections::BTreeMap, time::Duration};

use sqlx::{Postgres as Db, QueryBuilder, Row, postgres::PgRow, query::Query};

use super::Postgres;
use crate::{
    ids::{Epoch, Incarnation, Principal, SessionId},
    store::{
        Alias, AliasKind, Claim, Claimed, Result, SessionFilter, SessionRow, SessionState,
        StoreError, Transferred,
        sql::{bytes16, foreign_row, micros, session},
    },
};

/// How often a claim starts over when the row vanished while it was being judged.
const ATTEMPTS: u32 = 3;

macro_rules! session_columns {
    () => {
        "s.id, s.principal, s.route, s.key_label, s.owner, s.epoch, s.state, \
         m.state AS owner_state, m.peer_addr AS owner_addr, \
         (extract(epoch FROM clock_timestamp() - s.created_at) * 1000000)::bigint AS age_us"
    };
}

/// One statement decides: the fence on the claimant, the comparison with the epoch it saw,
/// and the state of the owner. An owner's row can only be missing once it was swept, that
/// is, long after its death.
const CLAIM: &str = "INSERT INTO session AS s \
     (id, principal, route, key_label, owner, epoch, state) \
     SELECT $1, $2, $3, $4, m.incarnation, nextval('epoch_seq'), 'LIVE' FROM member m \
     WHERE m.incarnation = $5 AND m.state IN ('JOINING', 'ACTIVE') \
     AND m.lease_expires_at > clock_timestamp() \
     ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, state = 'LIVE', \
     epoch = GREATEST(s.epoch + 1, excluded.epoch), \
     taken_from = NULLIF(s.owner, excluded.owner), updated_at = clock_timestamp() \
     WHERE s.epoch = $6 AND s.principal = excluded.principal \
     AND (s.owner IS NULL OR s.owner = excluded.owner OR NOT EXISTS \
     (SELECT 1 FROM member o WHERE o.incarnation = s.owner \
     AND o.state IN ('JOINING', 'ACTIVE', 'DRAINING'))) \
     RETURNING s.epoch, s.taken_from";

/// Why a claim was refused: the claimant's fitness and the row as it is now.
const REFUSED: &str = concat!(
    "SELECT EXISTS (SELECT 1 FROM member WHERE incarnation = $2 \
     AND state IN ('JOINING', 'ACTIVE') AND lease_expires_at > clock_timestamp()) AS fit, ",
    session_columns!(),
    " FROM (VALUES (1)) AS one LEFT JOIN session s ON s.id = $1 \
     LEFT JOIN member m ON m.incarnation = s.owner"
);

const SESSION: &str = concat!(
    "SELECT ",
    session_columns!(),
    " FROM session s LEFT JOIN member m ON m.incarnation = s.owner WHERE s.id = $1"
);

const SESSIONS: &str = concat!(
    "SELECT ",
    session_columns!(),
    " FROM session s LEFT JOIN member m ON m.incarnation = s.owner WHERE true"
);

const TRANSFER: &str = "UPDATE session SET owner = $4, state = 'LIVE', \
     epoch = GREATEST(epoch + 1, nextval('epoch_seq')), \
     taken_from = NULLIF(owner, $4), updated_at = clock_timestamp() \
     WHERE id = $1 AND owner = $2 AND epoch = $3 AND state = 'QUIESCING' \
     AND EXISTS (SELECT 1 FROM member WHERE incarnation = $4 AND state = 'ACTIVE' \
     AND lease_expires_at > clock_timestamp()) \
     AND ($5 OR NOT EXISTS (SELECT 1 FROM turn WHERE session = $1 \
     AND turn.state IN ('DISPATCHED', 'VISIBLE'))) RETURNING epoch";

/// Why a transfer of a quiescing session was refused.
const HEIR_FIT: &str = "SELECT EXISTS (SELECT 1 FROM member WHERE incarnation = $1 \
     AND state = 'ACTIVE' AND lease_expires_at > clock_timestamp()) AS fit";

/// A statement that touches one session only while it is ours in that epoch.
fn fenced(
    sql: &'static str,
    id: SessionId,
    me: Incarnation,
    epoch: Epoch,
) -> Query<'static, Db, sqlx::postgres::PgArguments> {
    sqlx::query(sql).bind(id.0.to_vec()).bind(me.0).bind(epoch.0)
}

impl Postgres {
    pub(super) async fn claim(&self, claim: &Claim) -> Result<Claimed> {
        for _ in 0..ATTEMPTS {
            let query = sqlx::query(CLAIM)
                .bind(&claim.id.0[..])
                .bind(&claim.principal.0[..])
                .bind(&claim.route)
                .bind(&claim.key_label)
                .bind(claim.me.0)
                .bind(claim.seen.map(|epoch| epoch.0));
            let (won, full) = match claim.limit {
                None => (self.optional(query).await?, false),
                Some(limit) => self.claim_within(claim, limit, query).await?,
            };
            if let Some(row) = won {
                let from: Option<i64> = row.try_get("taken_from")?;
                return Ok(Claimed::Won {
                    epoch: Epoch(row.try_get("epoch")?),
                    from: from.map(Incarnation),
                });
            }
            let query = sqlx::query(REFUSED).bind(&claim.id.0[..]).bind(claim.me.0);
            let row = self.optional(query).await?.ok_or_else(super::no_meta)?;
            if !row.try_get::<bool, _>("fit")? {
                return Ok(Claimed::Fenced);
            }
            if row.try_get::<Option<i64>, _>("epoch")?.is_some() {
                let row = session(&row)?;
                return if row.principal != claim.principal {
                    Err(foreign_row())
                } else if full && claim.would_win(&row) {
                    Ok(Claimed::Full)
                } else {
                    Ok(Claimed::Lost(row))
                };
            }
            if full {
                return Ok(Claimed::Full);
            }
        }
        Err(StoreError::Unavailable("the session's row keeps coming and going".into()))
    }

    pub(super) async fn session(&self, id: SessionId) -> Result<Option<SessionRow>> {
        let row = self.optional(sqlx::query(SESSION).bind(&id.0[..])).await?;
        row.as_ref().map(session).transpose()
    }

    pub(super) async fn sessions(&self, filter: &SessionFilter) -> Result<Vec<SessionRow>> {
        // Only the conditions that are asked for, so that each combination has its own plan.
        let mut query = QueryBuilder::<Db>::new(SESSIONS);
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
        let rows: Vec<PgRow> = self.all(query.build()).await?;
        rows.iter().map(session).collect()
    }

    pub(super) async fn retire(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        age: Duration,
    ) -> Result<bool> {
        // Nobody is told of a release, so its commit need not reach the disk before its answer: who
        // claims the session next waits for the disk, and with its own commit for this one. Lost
        // with the server's memory, the row goes on naming a session that is not there, as after
        // a release that failed.
        const RETIRE: &str = "UPDATE session SET owner = NULL, state = 'CLOSED', \
             updated_at = clock_timestamp() - $4 * interval '1 microsecond' \
             FROM set_config('synchronous_commit', 'off', true) \
             WHERE id = $1 AND owner = $2 AND epoch = $3";
        Ok(self.execute(fenced(RETIRE, id, me, epoch).bind(micros(age))).await? > 0)
    }

    pub(super) async fn set_state(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        state: SessionState,
    ) -> Result<bool> {
        const SET_STATE: &str = "UPDATE session SET state = $4, updated_at = clock_timestamp() \
             WHERE id = $1 AND owner = $2 AND epoch = $3";
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
        let query = fenced(TRANSFER, id, me, epoch).bind(heir.0).bind(forced);
        if let Some(row) = self.optional(query).await? {
            return Ok(Transferred::Moved(Epoch(row.try_get("epoch")?)));
        }
        Ok(match self.session(id).await? {
            Some(row) if row.owner != Some(me) || row.epoch != epoch => Transferred::NotOwner,
            Some(row) if row.state != SessionState::Quiescing => Transferred::NotQuiescing,
            Some(_) => {
                let fit = self.optional(sqlx::query(HEIR_FIT).bind(heir.0)).await?;
                let fit = fit.ok_or_else(super::no_meta)?.try_get("fit")?;
                if fit { Transferred::TurnsRunning } else { Transferred::HeirUnfit }
            }
            None => Transferred::NotOwner,
        })
    }

    pub(super) async fn put_aliases(&self, aliases: &[Alias]) -> Result<()> {
        const PUT: &str = "INSERT INTO alias (principal, kind, digest, session) \
             SELECT * FROM UNNEST($1::bytea[], $2::text[], $3::bytea[], $4::bytea[]) \
             ON CONFLICT (principal, kind, digest) \
             DO UPDATE SET session = excluded.session, updated_at = clock_timestamp()";
        // The last of equals counts, and all writers lock in one order.
        let rows: BTreeMap<_, _> =
            aliases.iter().map(|a| ((a.principal, a.kind.as_str(), a.digest), a.session)).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let query = sqlx::query(PUT)
            .bind(rows.keys().map(|key| key.0.0.to_vec()).collect::<Vec<_>>())
            .bind(rows.keys().map(|key| key.1).collect::<Vec<_>>())
            .bind(rows.keys().map(|key| key.2.to_vec()).collect::<Vec<_>>())
            .bind(rows.values().map(|id| id.0.to_vec()).collect::<Vec<_>>());
        self.execute(query).await.map(drop)
    }

    pub(super) async fn alias(
        &self,
        principal: Principal,
        kind: AliasKind,
        digest: [u8; 16],
    ) -> Result<Option<SessionId>> {
        const ALIAS: &str =
            "SELECT session FROM alias WHERE principal = $1 AND kind = $2 AND digest = $3";
        let query = sqlx::query(ALIAS).bind(&principal.0[..]).bind(kind.as_str()).bind(&digest[..]);
        self.optional(query)
            .await?
            .map(|row| bytes16(&row.try_get::<Vec<u8>, _>(0)?, "alias.session").map(SessionId))
            .transpose()
    }
}
