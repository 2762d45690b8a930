//! Orders of frames that are rare and in which credit was lost or made.

use super::*;

#[test]
fn control_frames_do_not_widen_the_window() {
    let window = 64 * 1024;
    let mut wire = Wire::new(window);
    let (_, mut edge, mut session) = wire.attach();
    for _ in 0..10_000 {
        session.tx.send(Frame::Ping(Bytes::from(vec![1; 125])));
        wire.pump();
        assert!(take(&mut edge).is_some());
    }
    wire.pump();
    for _ in 0..2000 {
        session.tx.send(of_size(1000));
    }
    wire.owner.poll_all();
    let flying = wire.owner.in_flight();
    assert!(flying <= window + 2000, "{flying} bytes under way in a window of {window} bytes");
}

#[test]
fn an_answer_that_comes_when_nobody_waits_leaves_no_client_behind() {
    let mut wire = Wire::new(64 * 1024);
    let (edge, theirs) = Link::pair(wire.window);
    let (id, answer) =
        wire.edge.mux.ask(theirs, proto::Attach::default(), Counted::default()).unwrap();
    wire.edge.poll_all();
    wire.edge.flying.clear();
    let (mut session, ours) = Link::pair(wire.window);
    wire.owner.mux.accept(id, ours, proto::Attached::default(), wire.credit());
    // Who asked gives up while the answer is on its way, and says so after it has come.
    drop(answer);
    wire.owner.poll_all();
    while wire.tell_edge() {}
    wire.edge.mux.abandon(id);
    wire.pump();
    assert_eq!((wire.edge.mux.channels(), wire.owner.mux.channels()), (0, 0));
    assert!(is_over(&mut session), "the session keeps a client that nobody is");
    drop(edge);
}

/// The reader takes small messages while a large one is on its way in pieces that were
/// granted in advance; what it takes later must still be granted.
#[test]
fn credit_that_falls_due_behind_prepaid_pieces_is_granted_without_another_cause() {
    let window = 64 * 1024;
    let mut wire = Wire::new(window);
    let (_, mut edge, mut session) = wire.attach();
    session.tx.send(of_size(20_000));
    session.tx.send(of_size(4 * CHUNK - 20));
    for n in 0..4 {
        session.tx.send(of_size(30_000 + n));
    }
    // The small one and the first piece of the large one arrive.
    wire.owner.poll_all();
    while wire.tell_edge() {}
    assert_eq!(take(&mut edge), Some(of_size(20_000)));
    // What follows arrives; the reader keeps taking.
    let mut arrived = 1;
    for _ in 0..100 {
        wire.pump();
        while take(&mut edge).is_some() {
            arrived += 1;
        }
    }
    assert_eq!(arrived, 6, "the channel stands still with a reader that has taken everything");
}

/// A message in pieces begins with credit for its first byte and no more; only what the
/// reader takes of earlier messages can pay for the rest.
#[test]
fn what_is_taken_beside_a_message_in_pieces_pays_for_its_rest() {
    let window = 64 * 1024;
    let mut wire = Wire::new(window);
    let (_, mut edge, mut session) = wire.attach();
    // With its header of four bytes and its place in the link it leaves 20 bytes.
    session.tx.send(of_size(window - 32 - 4 - 20));
    session.tx.send(of_size(2 * CHUNK));
    wire.pump();
    assert!(take(&mut edge).is_some());
    wire.pump();
    assert_eq!(take(&mut edge), Some(of_size(2 * CHUNK)), "the rest never comes");
}
