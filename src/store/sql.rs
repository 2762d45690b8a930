//! What the two SQL backends share: how rows become values, and how a failure of sqlx
//! becomes a [`StoreError`] that holds neither address nor password nor payload.

use std::time::Duration;

use sqlx::{ColumnIndex, Decode, Row, Type};

use super::{
    Death, LeaseEnd, Member, MemberState, Part, SessionRow, SessionState, StoreError, TurnRow,
    TurnState,
};
use crate::ids::{Epoch, Incarnation, Principal, SessionId};

/// Longest text taken over from a driver's error, in characters.
const DETAIL_LIMIT: usize = 200;

/// Longest lease or age that is taken literally; longer ones would leave the range of the
/// databases' timestamps.
const LONGEST: Duration = Duration::from_hours(10 * 365 * 24);

/// A duration in whole microseconds, capped at ten years.
pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.min(LONGEST).as_micros()).unwrap_or(i64::MAX)
}

/// The inverse of [`micros`]; what is below zero is zero.
pub(super) fn from_micros(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::RowNotFound => Self::Corrupt(brief(&error)),
            // The primary message only: a DETAIL would quote values of rows.
            sqlx::Error::Database(error) => {
                let code = error.code().unwrap_or_default().into_owned();
                Self::Unavailable(brief(&format_args!("{} [{code}]", error.message())))
            }
            // Its text may repeat parts of the URL.
            sqlx::Error::Configuration(_) => Self::BadUrl("not a usable database URL".into()),
            error => Self::Unavailable(brief(&error)),
        }
    }
}

fn brief(text: &impl std::fmt::Display) -> String {
    text.to_string().chars().take(DETAIL_LIMIT).collect()
}

/// The schema is there but its one row of common facts is not.
pub(super) fn no_meta() -> StoreError {
    StoreError::Corrupt("ring_meta holds no usable row".into())
}

/// Sixteen bytes from a column.
pub(super) fn bytes16(bytes: &[u8], column: &'static str) -> Result<[u8; 16], StoreError> {
    bytes.try_into().map_err(|_| StoreError::Corrupt(format!("{column} is not 16 bytes")))
}

fn small(value: i64, column: &'static str) -> Result<u32, StoreError> {
    u32::try_from(value).map_err(|_| StoreError::Corrupt(format!("{column} is out of range")))
}

/// What a death is judged by, as a parameter; none where it is proven.
pub(super) const fn judged(death: Death) -> Option<i64> {
    match death {
        Death::Lapsed(LeaseEnd(end)) => Some(end),
        Death::Proven => None,
    }
}

/// The word of a member's state as a value.
pub(super) fn member_state(word: &str) -> Result<MemberState, StoreError> {
    MemberState::parse(word)
        .ok_or_else(|| StoreError::Corrupt("a member is in an unknown state".into()))
}

/// Reads a member from its columns, `remaining_us` being what is left of its lease and `lease`
/// its end in a unit of the backend's.
pub(super) fn member<'r, R>(row: &'r R) -> Result<Member, StoreError>
where
    R: Row,
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
{
    Ok(Member {
        incarnation: Incarnation(row.try_get("incarnation")?),
        node_id: row.try_get("node_id")?,
        peer_addr: row.try_get("peer_addr")?,
        build: row.try_get("build")?,
        zone: row.try_get("zone")?,
        weight: small(row.try_get("weight")?, "weight")?,
        capacity: small(row.try_get("capacity")?, "capacity")?,
        process: row.try_get("process")?,
        state: member_state(&row.try_get::<String, _>("state")?)?,
        load: small(row.try_get("load")?, "load")?,
        lease_remaining: from_micros(row.try_get("remaining_us")?),
        lease: LeaseEnd(row.try_get("lease")?),
    })
}

/// Reads a session from its columns and those of its owner.
pub(super) fn session<'r, R>(row: &'r R) -> Result<SessionRow, StoreError>
where
    R: Row,
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
{
    let owner_state: Option<String> = row.try_get("owner_state")?;
    Ok(SessionRow {
        id: SessionId(bytes16(&row.try_get::<Vec<u8>, _>("id")?, "session.id")?),
        principal: Principal(bytes16(&row.try_get::<Vec<u8>, _>("principal")?, "principal")?),
        route: row.try_get("route")?,
        key_label: row.try_get("key_label")?,
        owner: row.try_get::<Option<i64>, _>("owner")?.map(Incarnation),
        owner_state: owner_state.as_deref().map(member_state).transpose()?,
        owner_addr: row.try_get("owner_addr")?,
        epoch: Epoch(row.try_get("epoch")?),
        state: SessionState::parse(&row.try_get::<String, _>("state")?)
            .ok_or_else(|| StoreError::Corrupt("a session is in an unknown state".into()))?,
        age: from_micros(row.try_get("age_us")?),
    })
}

/// Reads a part of a conversation.
pub(super) fn part<'r, R>(row: &'r R) -> Result<Part, StoreError>
where
    R: Row,
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
{
    Ok(Part {
        epoch: Epoch(row.try_get("epoch")?),
        no: small(row.try_get("part_no")?, "part_no")?,
        sealed: row.try_get("sealed")?,
    })
}

/// A turn's number as the databases hold it.
pub(super) fn turn_no(no: u64) -> i64 {
    i64::try_from(no).unwrap_or(i64::MAX)
}

/// Reads a turn from its columns.
pub(super) fn turn<'r, R>(row: &'r R) -> Result<TurnRow, StoreError>
where
    R: Row,
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
{
    Ok(TurnRow {
        session: SessionId(bytes16(&row.try_get::<Vec<u8>, _>("session")?, "turn.session")?),
        epoch: Epoch(row.try_get("epoch")?),
        no: u64::try_from(row.try_get::<i64, _>("turn_no")?).unwrap_or(0),
        state: TurnState::parse(&row.try_get::<String, _>("state")?)
            .ok_or_else(|| StoreError::Corrupt("a turn is in an unknown state".into()))?,
        request: bytes16(&row.try_get::<Vec<u8>, _>("request")?, "turn.request")?,
        response: row.try_get("response")?,
    })
}

/// What a claim answers when the row belongs to another principal. Ids are derived from
/// principals, so this is damage and not competition.
pub(super) fn foreign_row() -> StoreError {
    StoreError::Corrupt("a session id is held by another principal".into())
}
