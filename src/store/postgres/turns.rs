//! The ledger of turns.

use sqlx::{Postgres as Db, Row, postgres::PgArguments, query::Query};

use super::Postgres;
use crate::{
    ids::{Incarnation, SessionId},
    store::{
        Began, NewTurn, Result, StoreError, TurnKey, TurnMark, TurnRow,
        sql::{turn, turn_no},
    },
};

/// The wishes of a batch and the sessions that are ours, locked against a change of owner
/// until the turns are written. In the order of their ids, so that two batches never wait
/// for each other.
macro_rules! wishes {
    () => {
        "WITH wish AS MATERIALIZED (SELECT * FROM UNNEST($2::bytea[], $3::bigint[], \
         $4::bigint[], $5::bytea[], $6::bytea[], $7::boolean[]) WITH ORDINALITY \
         AS w (session, epoch, turn_no, idem_key, request, repeatable, place)), \
         held AS MATERIALIZED (SELECT s.id, s.epoch FROM session s WHERE s.id = ANY($2) \
         AND s.owner = $1 AND s.state = 'LIVE' ORDER BY s.id FOR SHARE)"
    };
}

const BEGIN: &str = concat!(
    wishes!(),
    ", made AS (INSERT INTO turn (session, epoch, turn_no, idem_key, request) \
     SELECT w.session, w.epoch, w.turn_no, w.idem_key, w.request FROM wish w \
     JOIN held h ON h.id = w.session AND h.epoch = w.epoch \
     ON CONFLICT DO NOTHING RETURNING session, epoch, turn_no) \
     SELECT h.id IS NOT NULL AS held, m.session IS NOT NULL AS made FROM wish w \
     LEFT JOIN held h ON h.id = w.session AND h.epoch = w.epoch \
     LEFT JOIN made m ON m.session = w.session AND m.epoch = w.epoch \
     AND m.turn_no = w.turn_no ORDER BY w.place"
);

/// For what was there already: the turn of that number, which may be dispatched once more
/// while it has named no response, or the turn of that key, by the same rule.
const AGAIN: &str = concat!(
    wishes!(),
    " UPDATE turn t SET epoch = w.epoch, turn_no = w.turn_no, state = 'DISPATCHED', \
     dispatches = t.dispatches + 1, updated_at = clock_timestamp() FROM wish w \
     JOIN held h ON h.id = w.session AND h.epoch = w.epoch WHERE t.session = w.session \
     AND (t.epoch = w.epoch AND t.turn_no = w.turn_no AND t.state = 'DISPATCHED' \
     OR t.idem_key = w.idem_key AND t.request = w.request AND t.response IS NULL \
     AND (t.state = 'FAILED' OR w.repeatable AND t.state = 'UNKNOWN'))"
);

const ROW: &str = "SELECT session, epoch, turn_no, state, request, response FROM turn \
     WHERE session = $1 AND (idem_key = $2 OR epoch = $3 AND turn_no = $4) \
     ORDER BY idem_key = $2 DESC NULLS LAST LIMIT 1";

const MARK: &str = "UPDATE turn t SET state = m.state, \
     response = COALESCE(m.response, t.response), updated_at = clock_timestamp() \
     FROM UNNEST($1::bytea[], $2::bigint[], $3::bigint[], $4::text[], $5::text[]) \
     AS m (session, epoch, turn_no, state, response) \
     WHERE t.session = m.session AND t.epoch = m.epoch AND t.turn_no = m.turn_no \
     AND t.state IN ('DISPATCHED', 'VISIBLE')";

fn bind<'q>(
    sql: &'static str,
    me: Incarnation,
    turns: impl Iterator<Item = &'q NewTurn> + Clone,
) -> Query<'static, Db, PgArguments> {
    let bytes = |turn: &NewTurn| turn.session.0.to_vec();
    let key = |turn: &NewTurn| turn.key.map(|key| key.0.to_vec());
    sqlx::query(sql)
        .bind(me.0)
        .bind(turns.clone().map(bytes).collect::<Vec<_>>())
        .bind(turns.clone().map(|turn| turn.epoch.0).collect::<Vec<_>>())
        .bind(turns.clone().map(|turn| turn_no(turn.no)).collect::<Vec<_>>())
        .bind(turns.clone().map(key).collect::<Vec<_>>())
        .bind(turns.clone().map(|turn| turn.request.to_vec()).collect::<Vec<_>>())
        .bind(turns.map(|turn| turn.repeatable).collect::<Vec<_>>())
}

impl Postgres {
    pub(super) async fn begin_turns(
        &self,
        me: Incarnation,
        turns: &[NewTurn],
    ) -> Result<Vec<Began>> {
        if turns.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.all(bind(BEGIN, me, turns.iter())).await?;
        if rows.len() != turns.len() {
            return Err(StoreError::Corrupt("a batch of turns was not answered whole".into()));
        }
        let mut outcomes = Vec::with_capacity(turns.len());
        for (turn, row) in turns.iter().zip(&rows) {
            outcomes.push(match (row.try_get("held")?, row.try_get("made")?) {
                (false, _) => Began::Fenced,
                (true, true) => Began::Begun,
                (true, false) => self.begin_again(me, turn).await?,
            });
        }
        Ok(outcomes)
    }

    /// The rare case: a row of this number or key is there.
    async fn begin_again(&self, me: Incarnation, new: &NewTurn) -> Result<Began> {
        if self.execute(bind(AGAIN, me, std::iter::once(new))).await? > 0 {
            return Ok(Began::Begun);
        }
        let query = sqlx::query(ROW)
            .bind(new.session.0.to_vec())
            .bind(new.key.map(|key| key.0.to_vec()))
            .bind(new.epoch.0)
            .bind(turn_no(new.no));
        match self.optional(query).await? {
            Some(row) => Ok(Began::Duplicate(turn(&row)?)),
            // It was swept in the meantime: whoever asks again will find no trace of it.
            None => Err(StoreError::Unavailable("a turn's row came and went".into())),
        }
    }

    pub(super) async fn mark_turns(&self, marks: &[TurnMark]) -> Result<u64> {
        let marks = TurnMark::coalesce(marks);
        if marks.is_empty() {
            return Ok(0);
        }
        let query = sqlx::query(MARK)
            .bind(marks.keys().map(|id| id.0.0.to_vec()).collect::<Vec<_>>())
            .bind(marks.keys().map(|id| id.1.0).collect::<Vec<_>>())
            .bind(marks.keys().map(|id| turn_no(id.2)).collect::<Vec<_>>())
            .bind(marks.values().map(|mark| mark.state.as_str()).collect::<Vec<_>>())
            .bind(marks.values().map(|mark| mark.response.clone()).collect::<Vec<_>>());
        self.execute(query).await
    }

    pub(super) async fn turn_by_key(
        &self,
        session: SessionId,
        key: TurnKey,
    ) -> Result<Option<TurnRow>> {
        const BY_KEY: &str = "SELECT session, epoch, turn_no, state, request, response \
             FROM turn WHERE session = $1 AND idem_key = $2";
        let query = sqlx::query(BY_KEY).bind(session.0.to_vec()).bind(key.0.to_vec());
        self.optional(query).await?.as_ref().map(turn).transpose()
    }
}
