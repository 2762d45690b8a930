//! Owners that die or freeze without a word.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::{sync::Notify, task::JoinHandle};

use crate::support::{
    ALICE, Node, Received, Ring, RingOptions, Ws,
    codexish::Codexish,
    eventually,
    history::History,
    responses::{Turn, body, create, is_terminal, user},
};

/// Bound of everything that has to follow a death: the lease, the reaper's look, a retry.
const RECOVERY: Duration = Duration::from_secs(15);

/// A room owned by `owner`, with a client at `edge` (or nowhere, if `edge` is None).
async fn room_owned_by(ring: &Ring, owner: impl Fn(&Node) -> bool, edge: &Node) -> (String, Ws) {
    for n in 0..64 {
        let key = format!("{}-{}-room-{n}", edge.id, ring.sessions().await.len());
        let url = edge.url(&format!("/rooms/{key}"));
        let ws = Ws::open(&url, &[ALICE, ("session-id", &key)]).await;
        if owner(ring.owner_of(&key).await) {
            return (key, ws);
        }
    }
    panic!("of 64 rooms no node owns one that fits");
}

/// A conversation through `edge` that another node owns, after its first turn.
async fn conversation_owned_by_another<'a>(ring: &'a Ring, edge: &Node) -> (Codexish, &'a Node) {
    for n in 0..64 {
        let key = format!("conversation-{n}");
        let mut codex = Codexish::new(&edge.client_url, &key);
        codex.turn(&format!("before the crash of {n}")).await.unwrap();
        let owner = ring.owner_of(&key).await;
        if owner.id != edge.id {
            return (codex, owner);
        }
    }
    panic!("{} owns all of 64 conversations", edge.id);
}

/// Echoes numbers back and forth until told to stop; fails at a gap or an end.
fn undisturbed(mut ws: Ws, stop: Arc<Notify>) -> JoinHandle<usize> {
    tokio::spawn(async move {
        let stopped = stop.notified();
        tokio::pin!(stopped);
        for n in 0.. {
            ws.text(format!("beat {n}")).await;
            assert_eq!(ws.data().await, Received::Text(format!("beat {n}")));
            let pause = tokio::time::sleep(Duration::from_millis(20));
            tokio::select! {
                () = &mut stopped => return n,
                () = pause => {}
            }
        }
        unreachable!()
    })
}

#[tokio::test]
async fn sessions_of_a_killed_owner_go_on_elsewhere_and_others_notice_nothing() {
    let ring = Ring::start(RingOptions::nodes(3)).await;
    // Its client is connected elsewhere: at the victim it would simply be cut off.
    let edge = ring.node(0);
    let (mut codex, victim) = conversation_owned_by_another(&ring, edge).await;
    let (room, mut visitor) = room_owned_by(&ring, |node| node.id == victim.id, edge).await;
    let survivors = [edge, ring.others(victim)[1]];
    let stop = Arc::new(Notify::new());
    let mut beats = Vec::new();
    for survivor in survivors {
        let (_, ws) = room_owned_by(&ring, |node| node.id != victim.id, survivor).await;
        beats.push(undisturbed(ws, Arc::clone(&stop)));
    }
    let epoch = ring.session(&room).await["epoch"].as_i64().unwrap();

    victim.kill9().await;

    codex.turn("after the crash").await.unwrap();
    // The room's upstream died with its owner: its visitor is told, not left hanging.
    assert!(visitor.end().await.is_end());
    let url = edge.url(&format!("/rooms/{room}?last_seq=1"));
    let again = eventually("the room is open again", RECOVERY, async || {
        Ws::connect(&url, &[ALICE, ("session-id", &room)]).await.ok()
    })
    .await;
    assert!(again.header("ringspan-resume").starts_with("gap"), "{:?}", again.headers);
    let session = ring.session(&room).await;
    assert!(session["epoch"].as_i64().unwrap() > epoch, "{session}");
    assert_ne!(session["owner_node"], victim.id.as_str());

    stop.notify_waiters();
    for beat in beats {
        assert!(beat.await.expect("a session of a survivor was disturbed") > 0);
    }
    let history = History::read(&ring.sample_url).await;
    history.assert_one_connection_each();
    history.assert_no_double_dispatch();
}

#[tokio::test]
async fn a_turn_in_flight_at_a_kill_ends_with_an_honest_error() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    for n in 0.. {
        assert!(n < 64);
        let key = format!("in-flight-{n}");
        let headers = [ALICE, ("session-id", key.as_str())];
        let mut socket = Ws::open(&ring.node(0).url("/v1/responses"), &headers).await;
        let warm = Turn::run(&mut socket, &create(&[user("warm")], None)).await;
        warm.id();
        if ring.owner_of(&key).await.id != "node-1" {
            continue;
        }
        socket.json(&create(&[user("long [deltas=2000] [delay=10ms]")], None)).await;
        assert_eq!(socket.data().await.json()["type"], "response.created");
        ring.node(1).kill9().await;
        let turn = Turn::read(&mut socket).await;
        match &turn.cut {
            None => assert_eq!(turn.last()["error"]["code"], "outcome_unknown", "{}", turn.last()),
            Some(Received::Close(code, _)) => assert!([1011, 1012, 1013].contains(code), "{code}"),
            other => panic!("neither an error nor a close: {other:?}"),
        }
        return;
    }
}

/// A replay ends before the turn that runs: the loss of the owner is told of that turn alone.
#[tokio::test]
async fn a_repeat_that_was_answered_is_not_answered_again_when_the_owner_dies_and_the_turn_that_runs_is_told_of()
 {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let edge = ring.node(0);
    for n in 0..64 {
        let key = format!("replayed-{n}");
        let headers = [ALICE, ("session-id", key.as_str())];
        let mut socket = Ws::open(&edge.url("/v1/responses"), &headers).await;
        // In a lane of its own, or the repeat would be answered after the turn that runs.
        let mut keyed = create(&[user("keyed")], None);
        keyed["stream_id"] = "aside".into();
        keyed["client_metadata"] = json!({ "idempotency_key": "once" });
        let answered = Turn::run(&mut socket, &keyed).await.id();
        let owner = ring.owner_of(&key).await;
        if owner.id == edge.id {
            continue;
        }
        socket.json(&create(&[user("long [deltas=2000] [delay=10ms]")], None)).await;
        let running = socket.data().await.json()["response"]["id"].clone();
        socket.json(&keyed).await;
        let mut end = async || loop {
            let event = socket.data().await.json();
            if is_terminal(&event) {
                return event;
            }
        };
        assert_eq!(end().await["response"]["id"], answered.as_str());
        owner.kill9().await;
        let told = end().await;
        assert_eq!(told["error"]["code"], "outcome_unknown", "{told}");
        assert_eq!(told["error"]["response_id"], running);
        // What comes next is the answer to what is asked next.
        Turn::run(&mut socket, &create(&[user("next")], None))
            .await
            .assert_answers(&["next".into()]);
        return;
    }
    panic!("{} owns all of 64 sessions", edge.id);
}

/// Waits until the upstream of the owner of `key` has a turn, and kills the owner. The
/// upstream is frozen meanwhile: it has said nothing.
async fn kill_before_the_first_event(ring: &Ring, key: &str) {
    let owner = ring.owner_of(key).await;
    let url = format!("{}/api/v1/sessions?limit=1000", owner.admin_url);
    eventually("the turn is dispatched", RECOVERY, async || {
        let answer = crate::support::http::get(&url, &[]).await.json();
        let sessions = answer["sessions"].as_array()?;
        let session =
            sessions.iter().find(|it| it["key"].as_str().is_some_and(|it| it.ends_with(key)))?;
        (session["local"]["turns_running"] == 1).then_some(())
    })
    .await;
    owner.kill9().await;
    ring.thaw_upstream();
}

/// An open conversation through `edge` that another node owns, after its first turn, whose
/// text is the key.
async fn socket_owned_by_another(ring: &Ring, edge: &Node) -> (String, Ws, String) {
    for n in 0..64 {
        let key = format!("first-event-{n}");
        let headers = [ALICE, ("session-id", key.as_str())];
        let mut socket = Ws::open(&edge.url("/v1/responses"), &headers).await;
        let turn = Turn::run(&mut socket, &create(&[user(&key)], None)).await;
        if ring.owner_of(&key).await.id != edge.id {
            return (key, socket, turn.id());
        }
    }
    panic!("{} owns all of 64 conversations", edge.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_whose_owner_dies_before_its_first_event_is_run_again_unseen() {
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let (key, mut socket, first) = socket_owned_by_another(&ring, ring.node(0)).await;
    ring.freeze_upstream().await;
    socket.json(&create(&[user("two")], Some(&first))).await;
    kill_before_the_first_event(&ring, &key).await;
    let turn = Turn::read(&mut socket).await;
    turn.assert_answers(&[key, "two".to_owned()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_turn_whose_owner_dies_before_its_first_event_is_never_run_again() {
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let (key, mut socket, first) = socket_owned_by_another(&ring, ring.node(0)).await;
    ring.freeze_upstream().await;
    let mut request = create(&[user("two")], Some(&first));
    request["store"] = true.into();
    socket.json(&request).await;
    kill_before_the_first_event(&ring, &key).await;
    let turn = Turn::read(&mut socket).await;
    assert_eq!(turn.last()["error"]["code"], "outcome_unknown", "{:?}", turn.events);
    // The conversation goes on from the turn that is known.
    let next = Turn::run(&mut socket, &create(&[user("three")], Some(&first))).await;
    next.assert_answers(&[key, "three".to_owned()]);
    History::read(&ring.sample_url).await.assert_no_double_dispatch();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_over_http_whose_owner_dies_before_its_first_event_is_run_again_unseen() {
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let (key, _socket, _) = socket_owned_by_another(&ring, ring.node(0)).await;
    ring.freeze_upstream().await;
    let (url, body) = (ring.node(0).url("/v1/responses"), body(&[user("alone")], None, false));
    let headers = [ALICE, ("session-id", key.as_str())];
    let (answer, ()) = tokio::join!(
        crate::support::http::post(&url, &headers, &body),
        kill_before_the_first_event(&ring, &key),
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = crate::support::responses::output_text(&answer.json());
    assert!(crate::support::responses::proves(&text, &["alone".to_owned()]), "{text}");
}

#[tokio::test]
async fn an_owner_that_was_frozen_past_its_lease_serves_nothing_more() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let victim = ring.youngest().await;
    let other = ring.others(victim)[0];
    let (key, mut inside) = room_owned_by(&ring, |node| node.id == victim.id, victim).await;
    let url = other.url(&format!("/rooms/{key}"));
    let headers = [ALICE, ("session-id", key.as_str())];
    let mut outside = Ws::open(&url, &headers).await;
    inside.text("while all is well").await;
    assert_eq!(outside.expect_text().await, "while all is well");
    assert_eq!(inside.expect_text().await, "while all is well");
    let before = ring.session(&key).await["epoch"].as_i64().unwrap();

    victim.freeze().await;
    inside.text("to a frozen node").await;

    // Once the lease is over somebody else has the session, with a higher epoch.
    let mut taken = eventually("the session has a new owner", RECOVERY, async || {
        let ws = Ws::connect(&url, &headers).await.ok()?;
        let epoch: i64 = ws.header("ringspan-epoch").parse().unwrap();
        (epoch > before).then_some(ws)
    })
    .await;
    taken.text("to the new owner").await;
    assert_eq!(taken.expect_text().await, "to the new owner");
    assert!(outside.end().await.is_end(), "the session that the client had is over");
    let answer =
        crate::support::http::get(&format!("{}/api/v1/sessions?limit=1000", other.admin_url), &[])
            .await
            .json();
    let claims: Vec<_> = answer["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|session| session["key"].as_str().is_some_and(|known| known.ends_with(&key)))
        .collect();
    assert_eq!(claims.len(), 1, "{claims:?}");
    assert_eq!(claims[0]["owner_node"], other.id.as_str());

    victim.cont();
    let end = inside.data().await;
    assert!(
        matches!(&end, Received::Close(1012, _)),
        "nothing is served after the lease; the client got {end:?}"
    );
    assert_eq!(victim.wait_exit(RECOVERY).await, 1, "{}", victim.log());
    taken.text("still there").await;
    assert_eq!(taken.expect_text().await, "still there");
}

#[tokio::test]
async fn a_killed_node_that_comes_back_joins_the_ring_again() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let victim = ring.node(1);
    victim.kill9().await;
    victim.restart().await;
    ring.until_whole().await;
    let mut codex = Codexish::new(&victim.client_url, "returned");
    codex.turn("hello again").await.unwrap();
}

/// It holds the lock under which the ring changes.
#[tokio::test]
async fn a_node_that_stands_still_while_it_joins_holds_up_no_other_for_long() {
    const WAITS: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
        AND datname = current_database() AND query LIKE '%FROM ring_meta FOR UPDATE'";
    let ring = Ring::start(RingOptions::nodes(2).setting("database_timeout", "\"1s\"")).await;
    let mut holder = PgConnection::connect(&ring.database_url).await.unwrap();
    let mut looking = PgConnection::connect(&ring.database_url).await.unwrap();
    holder.execute("BEGIN; SELECT 1 FROM ring_meta FOR UPDATE").await.unwrap();
    let joining = ring.extra_node("joining");
    joining.start();
    eventually("it waits for the ring", RECOVERY, async || {
        let waiting: i64 = sqlx::query_scalar(WAITS).fetch_one(&mut looking).await.unwrap();
        (waiting > 0).then_some(())
    })
    .await;
    joining.freeze().await;
    holder.execute("ROLLBACK").await.unwrap();

    let leaving = ring.node(1);
    leaving.sigterm();
    assert_eq!(leaving.wait_exit(RECOVERY).await, 0, "{}", leaving.log());
}
