//! The ledger of turns.

use sqlx::{Row as _, Sqlite as Db, query::Query, sqlite::SqliteArguments};

use super::{Sqlite, now_ms};
use crate::{
    ids::{Incarnation, SessionId},
    store::{
        Began, NewTurn, Result, TurnKey, TurnMark, TurnRow,
        sql::{turn, turn_no},
    },
};

/// Here and below, `?1` to `?8`: session, epoch, number, key, request, time, repeatable, owner.
macro_rules! held {
    () => {
        "EXISTS (SELECT 1 FROM session WHERE id = ?1 AND owner = ?8 AND epoch = ?2 \
         AND state = 'LIVE')"
    };
}

const HELD: &str = concat!("SELECT ", held!());

/// Fenced by itself, so that it may stand alone.
const BEGIN: &str = concat!(
    "INSERT INTO turn (session, epoch, turn_no, idem_key, request, begun_at, updated_at) \
     SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?6 WHERE ",
    held!(),
    " ON CONFLICT DO NOTHING"
);

/// The turn of that number, which may be dispatched once more while it has named no
/// response, or the turn of that key, by the same rule.
const AGAIN: &str = "UPDATE turn SET epoch = ?2, turn_no = ?3, state = 'DISPATCHED', \
     dispatches = dispatches + 1, updated_at = ?6 WHERE session = ?1 \
     AND (epoch = ?2 AND turn_no = ?3 AND state = 'DISPATCHED' \
     OR idem_key = ?4 AND request = ?5 AND response IS NULL \
     AND (state = 'FAILED' OR ?7 AND state = 'UNKNOWN'))";

const ROW: &str = "SELECT session, epoch, turn_no, state, request, response FROM turn \
     WHERE session = ?1 AND (idem_key = ?4 OR epoch = ?2 AND turn_no = ?3) \
     ORDER BY idem_key IS ?4 DESC LIMIT 1";

const MARK: &str = "UPDATE turn SET state = ?4, response = COALESCE(?5, response), \
     updated_at = ?6 WHERE session = ?1 AND epoch = ?2 AND turn_no = ?3 \
     AND state IN ('DISPATCHED', 'VISIBLE')";

fn bind(
    sql: &'static str,
    me: Incarnation,
    new: &NewTurn,
    now: i64,
) -> Query<'static, Db, SqliteArguments> {
    sqlx::query(sql)
        .bind(new.session.0.to_vec())
        .bind(new.epoch.0)
        .bind(turn_no(new.no))
        .bind(new.key.map(|key| key.0.to_vec()))
        .bind(new.request.to_vec())
        .bind(now)
        .bind(new.repeatable)
        .bind(me.0)
}

fn mark(mark: TurnMark, now: i64) -> Query<'static, Db, SqliteArguments> {
    sqlx::query(MARK)
        .bind(mark.session.0.to_vec())
        .bind(mark.epoch.0)
        .bind(turn_no(mark.no))
        .bind(mark.state.as_str())
        .bind(mark.response)
        .bind(now)
}

impl Sqlite {
    pub(super) async fn begin_turns(
        &self,
        me: Incarnation,
        turns: &[NewTurn],
    ) -> Result<Vec<Began>> {
        let now = now_ms();
        // A turn waits for this before it is sent, and each statement, also the ends of a
        // transaction, is a trip to the connection's thread and back.
        if let [new] = turns
            && self.execute(bind(BEGIN, me, new, now)).await? > 0
        {
            return Ok(vec![Began::Begun]);
        }
        let mut tx = self.write().await?;
        let mut outcomes = Vec::with_capacity(turns.len());
        for new in turns {
            if bind(BEGIN, me, new, now).execute(&mut *tx).await?.rows_affected() > 0 {
                outcomes.push(Began::Begun);
                continue;
            }
            let held = bind(HELD, me, new, now).fetch_one(&mut *tx).await?;
            outcomes.push(if !held.try_get::<bool, _>(0)? {
                Began::Fenced
            } else if bind(AGAIN, me, new, now).execute(&mut *tx).await?.rows_affected() > 0 {
                Began::Begun
            } else {
                Began::Duplicate(turn(&bind(ROW, me, new, now).fetch_one(&mut *tx).await?)?)
            });
        }
        tx.commit().await?;
        Ok(outcomes)
    }

    pub(super) async fn mark_turns(&self, marks: &[TurnMark]) -> Result<u64> {
        let now = now_ms();
        // The next turn of a conversation comes right after the end of the last, and its
        // beginning would wait for this transaction.
        if let [one] = marks {
            return self.execute(mark(one.clone(), now)).await;
        }
        let mut tx = self.write().await?;
        let mut changed = 0;
        for one in TurnMark::coalesce(marks).into_values() {
            changed += mark(one, now).execute(&mut *tx).await?.rows_affected();
        }
        tx.commit().await?;
        Ok(changed)
    }

    pub(super) async fn turn_by_key(
        &self,
        session: SessionId,
        key: TurnKey,
    ) -> Result<Option<TurnRow>> {
        const BY_KEY: &str = "SELECT session, epoch, turn_no, state, request, response \
             FROM turn WHERE session = ?1 AND idem_key = ?2";
        let query = sqlx::query(BY_KEY).bind(session.0.to_vec()).bind(key.0.to_vec());
        self.optional(query).await?.as_ref().map(turn).transpose()
    }
}
