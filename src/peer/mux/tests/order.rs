//! Any sizes, any windows, any interleaving: what arrives is what was sent, in order.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A frame of this size on this channel, towards the edge or the owner.
    Send {
        channel: usize,
        size: usize,
        up: bool,
    },
    Take {
        channel: usize,
        up: bool,
    },
    Poll {
        up: bool,
    },
    Tell {
        up: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![4 => 0..200usize, 2 => 200..5000usize, 1 => 60_000..200_000usize];
    prop_oneof![
        3 => (0..3usize, size, any::<bool>())
            .prop_map(|(channel, size, up)| Step::Send { channel, size, up }),
        3 => (0..3usize, any::<bool>()).prop_map(|(channel, up)| Step::Take { channel, up }),
        3 => any::<bool>().prop_map(|up| Step::Poll { up }),
        3 => any::<bool>().prop_map(|up| Step::Tell { up }),
    ]
}

/// Numbered, so that neither order nor loss can hide.
fn numbered(n: usize, size: usize) -> Frame {
    let text = n.to_string() + &".".repeat(size);
    let batch = Batch::one(&Message::text(text));
    Frame::Messages { batch, first_seq: n as u64, ended: 0, create: 0 }
}

/// One direction of one channel.
#[derive(Default)]
struct Flow {
    sent: Vec<Frame>,
    taken: usize,
}

impl Flow {
    fn arrived(&mut self, frame: &Frame) {
        assert_eq!(frame, &self.sent[self.taken], "message {} of its channel", self.taken);
        self.taken += 1;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_message_arrives_once_and_in_order(
        window in prop::sample::select(vec![256usize, 4096, 16_384, 65_536, 1 << 20]),
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let mut wire = Wire::new(window);
        let mut links: Vec<(Link, Link)> = Vec::new();
        for _ in 0..3 {
            let (_, edge, session) = wire.attach();
            links.push((edge, session));
        }
        let mut flows: Vec<[Flow; 2]> = (0..3).map(|_| Default::default()).collect();
        for step in steps {
            match step {
                Step::Send { channel, size, up } => {
                    let flow = &mut flows[channel][usize::from(up)];
                    let frame = numbered(flow.sent.len(), size);
                    flow.sent.push(frame.clone());
                    let (edge, session) = &mut links[channel];
                    let from = if up { edge } else { session };
                    from.tx.send(frame);
                }
                Step::Take { channel, up } => {
                    let (edge, session) = &mut links[channel];
                    let to = if up { session } else { edge };
                    if let Some(frame) = take(to) {
                        flows[channel][usize::from(up)].arrived(&frame);
                    }
                }
                Step::Poll { up: true } => drop(wire.edge.poll()),
                Step::Poll { up: false } => drop(wire.owner.poll()),
                Step::Tell { up: true } => drop(wire.tell_owner()),
                Step::Tell { up: false } => drop(wire.tell_edge()),
            }
        }
        // With readers everything arrives.
        loop {
            wire.pump();
            let mut moved = false;
            for (links, flows) in links.iter_mut().zip(&mut flows) {
                while let Some(frame) = take(&mut links.1) {
                    flows[1].arrived(&frame);
                    moved = true;
                }
                while let Some(frame) = take(&mut links.0) {
                    flows[0].arrived(&frame);
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
        for flow in flows.iter().flatten() {
            prop_assert_eq!(flow.taken, flow.sent.len(), "a channel stands still");
        }
    }
}
