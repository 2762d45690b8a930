//! Who may send how much.

use super::*;

#[test]
fn what_is_under_way_to_a_link_that_nobody_reads_is_bounded_by_its_window() {
    let window = 64 * 1024;
    let mut wire = Wire::new(window);
    let (_, mut edge, mut session) = wire.attach();
    let mut sent = 0;
    let mut cx = Context::from_waker(Waker::noop());
    while session.tx.poll_ready(&mut cx).is_ready() {
        session.tx.send(of_size(1000));
        sent += 1;
        wire.pump();
        assert!(sent < 1000, "nothing stops the sender");
    }
    let mut arrived = 0;
    while take(&mut edge).is_some() {
        arrived += 1;
    }
    assert!(arrived * 1000 <= window + 1000, "{arrived} messages in a window of {window} bytes");
    // Nothing is lost: once somebody reads, the rest comes.
    wire.pump();
    while take(&mut edge).is_some() {
        arrived += 1;
        wire.pump();
    }
    assert_eq!(arrived, sent);
}

#[test]
fn a_message_of_20_mib_passes_a_small_window_in_pieces() {
    let mut wire = Wire::new(16 * 1024);
    let (_, mut edge, mut session) = wire.attach();
    let large = of_size(20 << 20);
    session.tx.send(large.clone());
    session.tx.send(messages(&["behind"]));
    loop {
        let before = wire.owner.in_flight();
        if !wire.owner.poll() && before == 0 {
            break;
        }
        assert!(wire.owner.in_flight() <= 16 * 1024 + CHUNK, "pieces wait for credit");
        wire.pump();
    }
    assert!(take(&mut edge) == Some(large), "the message is as it was");
    wire.pump();
    assert_eq!(take(&mut edge), Some(messages(&["behind"])));
}

#[test]
fn channels_that_nobody_reads_do_not_hold_up_another() {
    let mut wire = Wire::new(16 * 1024);
    let mut stalled = Vec::new();
    for _ in 0..64 {
        let (_, edge, mut session) = wire.attach();
        for _ in 0..40 {
            session.tx.send(of_size(1000));
        }
        stalled.push((edge, session));
    }
    let (_, mut edge, mut session) = wire.attach();
    wire.pump();
    for n in 0..200 {
        let text = n.to_string();
        session.tx.send(messages(&[&text]));
        edge.tx.send(messages(&[&text]));
        wire.pump();
        assert_eq!(take(&mut edge), Some(messages(&[&text])));
        assert_eq!(take(&mut session), Some(messages(&[&text])));
    }
    for (edge, session) in &mut stalled {
        assert!(session.tx.queued() > 0, "it waits in its own link");
        assert!(take(edge).is_some());
    }
}

#[test]
fn channels_that_are_ready_take_turns() {
    let mut wire = Wire::new(1 << 20);
    let (first, _edge, mut large) = wire.attach();
    let (second, _other, mut small) = wire.attach();
    large.tx.send(of_size(10 * CHUNK));
    small.tx.send(messages(&["quick"]));
    let mut spoke = Vec::new();
    while spoke.len() < 4 && wire.owner.poll() {
        spoke.push(wire.owner.flying.back().unwrap().channel);
    }
    let at = spoke.iter().position(|channel| *channel == second);
    assert!(at.is_some_and(|at| at <= 1), "{spoke:?}, {first} is the large one");
}
