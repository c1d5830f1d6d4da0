//! Sends without a copy. On the loopback interface the kernel copies what is delivered, so what it really sends from
//! is what a peer has no room for: the peers here read nothing until they are told to.

use std::time::Duration;

use super::desk::submission::{CLOSE, DETACH, END, RESET, SEND_PIN, WATCH_DRAIN};
use super::desk::{error_kind, number, often, Desk, Plan, MS, SECOND};
use super::peer::{pattern, Peer};
use crate::block::MAX_BLOCK;
use crate::connection::{Limits, LINGER};
use crate::ledger::FORGETS;
use crate::lending::{ZeroCopy, LEND_MIN};
use crate::limbo::LIMBO_DELAY;
use crate::link_buffer::Hold;
use crate::record::Cause;
use crate::tests::keep;

/// More than the kernel takes of a connection whose peer does not read.
const MUCH: usize = 8 << 20;

fn plan(zero_copy: ZeroCopy) -> Plan {
    Plan { zero_copy, ..Plan::default() }
}

/// A desk, and a peer that reads nothing by itself.
fn stalled(plan: Plan) -> (Desk, Peer, usize) {
    let mut desk = Desk::new(plan);
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    (desk, peer, book)
}

fn always() -> (Desk, Peer, usize) {
    stalled(plan(ZeroCopy::Always))
}

/// Sends the bytes, until the kernel takes no more; it sends from our memory then.
#[track_caller]
fn lend(desk: &mut Desk, book: usize, bytes: &[u8]) {
    desk.write(book, bytes);
    desk.turn();
    desk.until("the kernel takes no more", |desk| {
        let output = &desk.operator(book).connection.output;
        output.is_blocked || output.queue.is_empty()
    });
    assert!(lent(desk, book) > 0, "the kernel sends from our memory");
}

/// Bytes that the kernel sends from our memory.
fn lent(desk: &mut Desk, book: usize) -> u64 {
    desk.operator(book).connection.output.lending.ledger.bytes()
}

/// Blocks that are out, but for those that the polls have for their next reads.
fn blocks_out(desk: &mut Desk) -> u64 {
    desk.seats.iter_mut().for_each(|seat| seat.poll.io.intake.release());
    desk.table.blocks_out()
}

/// Writes over every block that is free, as whoever gets it next would.
fn use_free_blocks(desk: &Desk) {
    let free = std::iter::from_fn(|| desk.table.alloc(MAX_BLOCK)).collect::<Vec<_>>();
    for block in &free {
        // SAFETY: nobody else has the block.
        unsafe { block.as_ptr().write_bytes(0xA5, block.len() as usize) };
    }
}

/// How many bytes are not what they should be.
fn corrupted(read: &[u8], sent: &[u8]) -> usize {
    read.iter().zip(sent).filter(|(read, sent)| read != sent).count()
}

/// A part of what the kernel takes at once, so that nothing is left to send.
fn a_little(bytes: &[u8]) -> &[u8] {
    &bytes[..1 << 20]
}

#[test]
fn large_output_arrives_and_every_block_comes_back_when_the_kernel_says_so() {
    let mut desk = Desk::new(plan(ZeroCopy::Always));
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    let bytes = pattern(MUCH);
    desk.write(book, &bytes);
    assert!(desk.peer_reads(&peer, bytes.len()) == bytes);
    desk.until("all blocks are back", |desk| lent(desk, book) == 0);
    assert_eq!(blocks_out(&mut desk), 0);
    assert_eq!((desk.status(book).sent, lent(&mut desk, book)), (MUCH as u64, 0));
    let stats = desk.stats(0);
    assert!(stats.lent >= 3 && stats.copied == stats.lent && stats.fallbacks == 0, "{stats:?}");
}

#[test]
fn small_output_is_copied_and_so_is_that_of_a_unix_socket_or_with_zero_copy_off() {
    for (zero_copy, is_unix, length) in [
        (ZeroCopy::Always, false, LEND_MIN - 1),
        (ZeroCopy::Always, true, MUCH),
        (ZeroCopy::Off, false, MUCH),
    ] {
        let mut desk = Desk::new(plan(zero_copy));
        let address = if is_unix { desk.listen_unix() } else { desk.listen() };
        let (peer, book) = desk.connect(&address);
        let bytes = pattern(length);
        desk.write(book, &bytes);
        assert!(desk.peer_reads(&peer, bytes.len()) == bytes);
        assert_eq!((desk.stats(0).lent, blocks_out(&mut desk)), (0, 0));
    }
}

#[test]
fn auto_stops_on_a_connection_when_the_kernel_had_to_copy() {
    let mut desk = Desk::new(plan(ZeroCopy::Auto));
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    let bytes = pattern(1 << 20);
    let mut after_the_first = None;
    for _ in 0..10 {
        desk.write(book, &bytes);
        assert!(desk.peer_reads(&peer, bytes.len()) == bytes);
        desk.until("the kernel has reported", |desk| lent(desk, book) == 0);
        after_the_first.get_or_insert(desk.stats(0).lent);
    }
    assert_eq!(Some(desk.stats(0).lent), after_the_first);
    assert!(desk.stats(0).copied >= 1);
}

// ---- hazard 4: a block that is used again too early

fn read_after_reuse() -> (Vec<u8>, Vec<u8>) {
    let (mut desk, peer, book) = always();
    let bytes = pattern(MUCH);
    lend(&mut desk, book, &bytes);
    use_free_blocks(&desk);
    let read = desk.peer_reads(&peer, bytes.len());
    // Of the control: it has given back everything long ago.
    desk.until("nothing is lent", |desk| lent(desk, book) == 0);
    (read, bytes)
}

#[test]
fn blocks_are_not_used_again_while_the_kernel_sends_from_them() {
    let (read, bytes) = read_after_reuse();
    assert_eq!(corrupted(&read, &bytes), 0);
}

#[test]
fn without_the_ledger_the_peer_reads_what_others_have_written_meanwhile() {
    FORGETS.set(true);
    let (read, bytes) = read_after_reuse();
    FORGETS.set(false);
    assert!(corrupted(&read, &bytes) > LEND_MIN, "the test above would notice");
}

#[test]
fn what_is_lent_counts_as_memory_in_use() {
    let (mut desk, _peer, book) = always();
    lend(&mut desk, book, a_little(&pattern(MUCH)));
    let held = lent(&mut desk, book);
    assert!(desk.operator(book).connection.output.queue.is_empty());
    assert!(desk.table.bytes_out() >= held && desk.operator(book).connection.output.pending() == held);
}

#[test]
fn a_pin_is_given_back_and_its_bytes_count_as_sent_only_when_the_kernel_is_done() {
    let (mut desk, peer, book) = always();
    let bytes = keep(pattern(1 << 20));
    let pin = desk.pin(bytes);
    desk.put(book, SEND_PIN, [pin, 0, 0]);
    desk.put(book, WATCH_DRAIN, [bytes.len() as u32, 0, 0]);
    desk.until("the kernel has taken all", |desk| {
        desk.operator(book).connection.output.sent == bytes.len() as u64
    });
    desk.write(book, b"behind it");
    desk.idle();
    assert_eq!(desk.operator(book).connection.output.sent, bytes.len() as u64 + 9);
    assert!(desk.status(book).sent < bytes.len() as u64);
    assert_eq!((desk.books[book].drained, desk.unpinned.len()), (0, 0));
    assert!(desk.peer_reads(&peer, bytes.len() + 9) == [bytes, b"behind it"].concat());
    desk.until("it is given back", |desk| desk.unpinned == [pin]);
    assert_eq!((desk.books[book].drained, desk.status(book).sent), (1, bytes.len() as u64 + 9));
}

// ---- hazard 5: the end, while the kernel still sends

#[test]
fn a_closed_connection_stays_until_the_kernel_is_done_and_the_peer_gets_everything() {
    let (mut desk, peer, book) = always();
    let all = pattern(MUCH);
    let bytes = a_little(&all);
    lend(&mut desk, book, bytes);
    desk.put(book, CLOSE, [0; 3]);
    desk.idle();
    assert_eq!((desk.books[book].closed, desk.status(book).flags & 2), (None, 2), "FIN is sent");
    use_free_blocks(&desk);
    let (read, end) = desk.peer_reads_to_end(&peer);
    assert!(read == bytes && end.is_ok());
    assert_eq!(desk.until_closed(book), 0);
    assert_eq!(blocks_out(&mut desk), 0);
}

#[test]
fn a_close_that_does_not_wait_would_cost_the_peer_bytes() {
    let (mut desk, peer, book) = always();
    let all = pattern(MUCH);
    let bytes = a_little(&all);
    lend(&mut desk, book, bytes);
    let operator = desk.operator(book).token;
    // What close() does when nothing is lent.
    desk.seats[0].poll.close(operator, Cause::ORDERLY);
    assert_eq!(blocks_out(&mut desk), 0);
    use_free_blocks(&desk);
    let (read, end) = desk.peer_reads_to_end(&peer);
    assert_eq!(corrupted(&read, bytes), 0, "but never wrong ones");
    assert!(read.len() < bytes.len() && end.is_err());
    desk.until_closed(book);
}

#[test]
fn half_closed_on_both_sides_it_stays_until_the_kernel_is_done() {
    let (mut desk, peer, book) = always();
    let all = pattern(MUCH);
    let bytes = a_little(&all);
    lend(&mut desk, book, bytes);
    desk.put(book, END, [0; 3]);
    desk.put(book, WATCH_DRAIN, [bytes.len() as u32, 0, 0]);
    peer.finish();
    desk.until("both sides have ended", |desk| desk.status(book).flags == 3);
    desk.idle();
    assert_eq!((desk.books[book].closed, desk.books[book].drained), (None, 0));
    let (read, end) = desk.peer_reads_to_end(&peer);
    assert!(read == bytes && end.is_ok());
    assert_eq!((desk.until_closed(book), desk.books[book].drained), (0, 1));
}

#[test]
fn a_peer_that_reads_nothing_is_reset_when_a_closed_connection_has_lingered_long_enough() {
    let (mut desk, peer, book) = always();
    let bytes = pattern(MUCH);
    lend(&mut desk, book, a_little(&bytes));
    desk.put(book, CLOSE, [0; 3]);
    desk.idle();
    desk.pass(LINGER - MS);
    assert_eq!(desk.books[book].closed, None);
    desk.pass(MS);
    assert_eq!(desk.until_closed(book), number(Cause::WRITE_TIMEOUT));
    assert_eq!(blocks_out(&mut desk), 0);
    use_free_blocks(&desk);
    let (read, end) = desk.peer_reads_to_end(&peer);
    assert_eq!((corrupted(&read, &bytes), end.is_err()), (0, true));
}

#[test]
fn the_write_timeout_is_about_what_is_lent_too() {
    let limits = Limits { write_timeout: Some(SECOND), ..Plan::default().limits };
    let (mut desk, peer, book) = stalled(Plan { limits, ..plan(ZeroCopy::Always) });
    let bytes = pattern(MUCH);
    lend(&mut desk, book, a_little(&bytes));
    desk.idle();
    desk.pass(SECOND - MS);
    assert_eq!(desk.books[book].closed, None);
    assert!(desk.peer_reads(&peer, 1 << 20) == a_little(&bytes));
    desk.until("nothing is lent", |desk| lent(desk, book) == 0);
    desk.pass(10 * SECOND);
    assert_eq!(desk.books[book].closed, None, "nothing waits any more");
    lend(&mut desk, book, a_little(&bytes));
    desk.idle();
    desk.pass(SECOND);
    assert_eq!(desk.until_closed(book), number(Cause::WRITE_TIMEOUT));
}

#[test]
fn reset_gives_everything_back_at_once_and_the_peer_reads_nothing_wrong() {
    let (mut desk, peer, book) = always();
    let bytes = keep(pattern(MUCH));
    lend(&mut desk, book, a_little(bytes));
    let pin = desk.pin(a_little(bytes));
    desk.put(book, SEND_PIN, [pin, 0, 0]);
    desk.idle();
    desk.put(book, RESET, [0; 3]);
    desk.turn();
    assert_eq!((desk.until_closed(book), blocks_out(&mut desk)), (0, 0));
    assert_eq!((&desk.unpinned[..], desk.seats[0].poll.limbo.is_empty()), (&[pin][..], true));
    use_free_blocks(&desk);
    let (read, end) = desk.peer_reads_to_end(&peer);
    assert!(read.len() < 1 << 20 && corrupted(&read, bytes) == 0 && end.is_err());
}

#[test]
fn what_the_kernel_has_reported_counts_as_sent_although_nobody_has_looked_before_the_reset() {
    let (mut desk, peer, book) = always();
    let bytes = pattern(MUCH);
    lend(&mut desk, book, a_little(&bytes));
    let mut read = Vec::new();
    // Without a turn nobody takes the reports.
    while read.len() < a_little(&bytes).len() {
        read.extend(peer.read().unwrap().into_iter().flatten());
    }
    assert!(lent(&mut desk, book) > 0 && read == a_little(&bytes));
    desk.put(book, RESET, [0; 3]);
    desk.turn();
    assert_eq!((desk.until_closed(book), desk.status(book).sent), (0, 1 << 20));
}

#[test]
fn many_connections_that_are_closed_while_the_kernel_sends_leave_nothing_behind() {
    let mut desk = Desk::new(Plan { max_memory: 256 << 20, slots: 64, ..plan(ZeroCopy::Always) });
    let address = desk.listen();
    let bytes = pattern(MUCH);
    for round in 0..often(4, 420) {
        let peers = (0..24)
            .map(|_| {
                let (peer, book) = desk.connect(&address);
                lend(&mut desk, book, a_little(&bytes));
                desk.put(book, CLOSE, [0; 3]);
                (peer, book)
            })
            .collect::<Vec<_>>();
        desk.idle();
        use_free_blocks(&desk);
        // Every other one never reads.
        for (peer, _) in peers.iter().skip(round % 2).step_by(2) {
            let (read, end) = desk.peer_reads_to_end(peer);
            assert!(read == a_little(&bytes) && end.is_ok());
        }
        desk.until("all are closed", |desk| {
            // More than once: a kernel may make a little progress by its own clock at the very end of the time.
            desk.pass(LINGER);
            peers.iter().all(|(_, book)| desk.books[*book].closed.is_some())
        });
        assert_eq!((blocks_out(&mut desk), desk.seats[0].poll.operators.open()), (0, 0));
        for (peer, _) in peers.iter().skip(1 - round % 2).step_by(2) {
            let (read, end) = desk.peer_reads_to_end(peer);
            assert_eq!((corrupted(&read, &bytes), end.is_err()), (0, true));
        }
    }
}

#[test]
fn a_descriptor_is_given_away_only_when_the_kernel_is_done() {
    let (mut desk, peer, book) = always();
    let bytes = pattern(MUCH);
    lend(&mut desk, book, a_little(&bytes));
    desk.put(book, DETACH, [0; 3]);
    desk.idle();
    assert_eq!(desk.books[book].detached, None);
    assert!(desk.peer_reads(&peer, 1 << 20) == a_little(&bytes));
    desk.until("it is detached", |desk| desk.books[book].detached.is_some());
    assert_eq!(blocks_out(&mut desk), 0);
    drop(desk.take_detached(book));
}

#[test]
fn what_is_lent_moves_to_another_poll_and_comes_back_there() {
    let mut desk = Desk::new(Plan { polls: 2, ..plan(ZeroCopy::Always) });
    let address = desk.listen();
    let (_first, _) = desk.connect(&address);
    let (peer, book) = desk.connect(&address);
    assert_eq!(desk.books[book].poll, 1);
    let bytes = pattern(MUCH);
    lend(&mut desk, book, &bytes);
    let before = desk.status(book).sent;
    desk.inboxes.retire(1);
    desk.until("it has arrived", |desk| desk.books[book].poll == 0);
    assert!(lent(&mut desk, book) > 0 && desk.status(book).sent >= before);
    use_free_blocks(&desk);
    assert!(desk.peer_reads(&peer, bytes.len()) == bytes);
    desk.until("all blocks are back", |desk| lent(desk, book) == 0);
    assert_eq!(blocks_out(&mut desk), 0);
    assert_eq!(desk.status(book).sent, bytes.len() as u64);
}

#[test]
fn what_the_kernel_reports_on_the_way_is_heard_by_the_new_poll() {
    let mut desk = Desk::new(Plan { polls: 2, ..plan(ZeroCopy::Always) });
    desk.manners.lets_go = false;
    let address = desk.listen();
    let (_first, _) = desk.connect(&address);
    let (peer, book) = desk.connect(&address);
    let bytes = pattern(MUCH);
    lend(&mut desk, book, a_little(&bytes));
    desk.inboxes.retire(1);
    desk.until("MOVED is told", |desk| desk.books[book].moving_to.is_some());
    assert!(desk.peer_reads(&peer, 1 << 20) == a_little(&bytes));
    desk.idle();
    assert!(lent(&mut desk, book) > 0, "nobody watches it");
    desk.let_go(book);
    desk.until("it has arrived", |desk| desk.books[book].poll == 0);
    desk.until("all blocks are back", |desk| lent(desk, book) == 0);
    assert_eq!(blocks_out(&mut desk), 0);
    assert_eq!((desk.books[book].poll, desk.status(book).sent), (0, 1 << 20));
}

#[test]
fn a_poll_that_ends_resets_those_whose_peers_do_not_read_and_no_block_is_used_too_early() {
    let mut desk = Desk::new(Plan { polls: 2, ..plan(ZeroCopy::Always) });
    let address = desk.listen();
    let (_first, _) = desk.connect(&address);
    let (peer, book) = desk.connect(&address);
    let bytes = pattern(MUCH);
    lend(&mut desk, book, a_little(&bytes));
    desk.lose_poll();
    assert_eq!(blocks_out(&mut desk), 0);
    use_free_blocks(&desk);
    let (read, end) = desk.peer_reads_to_end(&peer);
    assert!(read.len() < 1 << 20 && corrupted(&read, &bytes) == 0 && end.is_err());
}

#[test]
fn a_poll_that_ends_gives_peers_that_read_a_moment() {
    // Not each time, for the moment is short, and this machine may have other work.
    let is_read = (0..50).any(|_| {
        let mut desk = Desk::new(Plan { polls: 2, ..plan(ZeroCopy::Always) });
        let address = desk.listen();
        let (_first, _) = desk.connect(&address);
        let (peer, book) = desk.connect(&address);
        let bytes = pattern(1 << 20);
        lend(&mut desk, book, &bytes);
        let reader = std::thread::spawn(move || {
            std::thread::sleep(5 * MS);
            peer.drain(1 << 20).join()
        });
        desk.lose_poll();
        reader.join().unwrap().is_ok_and(|read| read == bytes)
    });
    assert!(is_read);
}

#[test]
fn a_poll_that_ends_closes_in_order_what_the_kernel_is_done_with() {
    let mut desk = Desk::new(Plan { polls: 2, ..plan(ZeroCopy::Always) });
    let address = desk.listen();
    let (_first, _) = desk.connect(&address);
    let (peer, book) = desk.connect(&address);
    let bytes = pattern(1 << 20);
    lend(&mut desk, book, &bytes);
    let mut read = Vec::new();
    // Without a turn nobody takes the reports.
    while read.len() < bytes.len() {
        read.extend(peer.read().unwrap().into_iter().flatten());
    }
    assert!(lent(&mut desk, book) > 0 && read == bytes);
    desk.lose_poll();
    assert_eq!(blocks_out(&mut desk), 0);
    assert!(desk.peer_reads_to_end(&peer).1.is_ok());
}

#[test]
fn a_poll_that_retires_waits_for_what_a_network_card_still_sends() {
    let mut desk = Desk::new(Plan { polls: 2, ..plan(ZeroCopy::Always) });
    let address = desk.listen();
    let (_first, _) = desk.connect(&address);
    let (_peer, book) = desk.connect(&address);
    // A send of which this kernel knows nothing: no report of it will come.
    let hold = Hold::Block(desk.table.alloc(1).unwrap());
    desk.operator(book).connection.output.lending.ledger.record(0, 1, vec![hold]);
    desk.put(book, RESET, [0; 3]);
    desk.until_closed(book);
    assert_eq!(blocks_out(&mut desk), 1);
    desk.inboxes.retire(1);
    desk.idle();
    assert_eq!(desk.seats[1].retired(), 0);
    assert_eq!(desk.seats[1].left.next_deadline, Some(desk.now + LIMBO_DELAY));
    desk.pass(SECOND);
    desk.turn();
    assert_eq!((desk.seats[1].retired(), blocks_out(&mut desk)), (1, 0));
}

// ---- hazard 6: reports that look like errors

#[test]
fn a_report_looks_like_a_broken_connection_and_is_none() {
    let (mut desk, peer, book) = always();
    let bytes = pattern(1 << 20);
    lend(&mut desk, book, &bytes);
    // The first of it has reached the peer's kernel: mio tells of that without a turn.
    let looks_broken = |desk: &mut Desk| {
        let poll = &mut desk.seats[0].poll;
        poll.mio.poll(&mut poll.events, Some(Duration::ZERO)).unwrap();
        poll.is_collected = true;
        poll.events.iter().any(|event| event.is_error())
    };
    let mut read = Vec::new();
    while !looks_broken(&mut desk) {
        desk.turn();
        read.extend(peer.read().unwrap().into_iter().flatten());
    }
    while read.len() < bytes.len() {
        desk.turn();
        desk.wait();
        read.extend(peer.read().unwrap().into_iter().flatten());
    }
    assert!(read == bytes);
    assert_eq!(
        (desk.books[book].closed, desk.status(book).flags, desk.books[book].is_ended),
        (None, 0, false)
    );
    peer.write(b"still here");
    desk.until_arrived(book, 10);
}

#[test]
fn all_reports_that_wait_are_taken_in_one_turn() {
    let (mut desk, peer, book) = always();
    // Their reports lie between those of the sends, which the kernel would join otherwise.
    crate::sys::report_times(desk.operator(book).descriptor()).unwrap();
    let bytes = pattern(1 << 20);
    lend(&mut desk, book, &bytes);
    desk.write(book, &bytes[..LEND_MIN]);
    desk.turn();
    let held = lent(&mut desk, book);
    assert!(held > LEND_MIN as u64);
    let wanted = bytes.len() + LEND_MIN;
    let mut read = Vec::new();
    // Without a turn nobody takes the reports.
    while read.len() < wanted {
        read.extend(peer.read().unwrap().into_iter().flatten());
    }
    while crate::sys::unacknowledged(desk.operator(book).descriptor()).unwrap() > 0 {
        std::thread::yield_now();
    }
    assert_eq!(lent(&mut desk, book), held);
    desk.turn();
    assert_eq!(lent(&mut desk, book), 0);
}

#[test]
fn many_sends_on_many_connections_close_none_of_them_and_a_reset_is_still_told_as_such() {
    let mut desk = Desk::new(plan(ZeroCopy::Always));
    let address = desk.listen();
    let ends = (0..50).map(|_| desk.connect(&address)).collect::<Vec<_>>();
    let bytes = pattern(LEND_MIN);
    let rounds = often(40, 2000);
    for _ in 0..rounds {
        ends.iter().for_each(|(_, book)| desk.write(*book, &bytes));
        for (peer, _) in &ends {
            assert!(desk.peer_reads(peer, bytes.len()) == bytes);
        }
    }
    desk.until("nothing is lent", |desk| ends.iter().all(|(_, book)| lent(desk, *book) == 0));
    assert_eq!(blocks_out(&mut desk), 0);
    assert!(desk.stats(0).lent as usize >= 49 * rounds, "{:?}", desk.stats(0));
    assert!(desk.books.iter().all(|book| book.closed.is_none() && !book.is_ended));

    let (peer, book) = desk.connect(&address);
    lend(&mut desk, book, &pattern(1 << 20));
    peer.reset();
    assert_eq!(error_kind(desk.until_closed(book)), std::io::ErrorKind::ConnectionReset);
    assert_eq!(blocks_out(&mut desk), 0);
    assert!(ends.iter().all(|(_, book)| desk.books[*book].closed.is_none()));
}

#[test]
fn a_reset_ends_a_closed_connection_that_lingers() {
    let (mut desk, peer, book) = always();
    lend(&mut desk, book, &pattern(1 << 20));
    desk.put(book, CLOSE, [0; 3]);
    desk.idle();
    assert_eq!(desk.books[book].closed, None);
    peer.reset();
    desk.until_closed(book);
    assert_eq!(blocks_out(&mut desk), 0);
}

// ---- hazard 8: the kernel has no room

#[test]
fn without_room_in_the_kernel_output_is_copied_and_arrives() {
    // Room for one report; and for none at all.
    for (room, some_are_lent) in [(4096, true), (0, false)] {
        for zero_copy in [ZeroCopy::Auto, ZeroCopy::Always] {
            if !crate::sys::in_own_network(room) {
                eprintln!("skipped: this process may not have a network of its own");
                return;
            }
            let (mut desk, peer, book) = stalled(Plan { max_memory: 128 << 20, ..plan(zero_copy) });
            let bytes = pattern(MUCH);
            // Of a small ring of pieces each call sends little, so that many are under way.
            for part in bytes.chunks(LEND_MIN) {
                desk.write(book, part);
                desk.turn();
            }
            assert!(desk.peer_reads(&peer, bytes.len()) == bytes);
            desk.until("all blocks are back", |desk| lent(desk, book) == 0);
            assert_eq!(blocks_out(&mut desk), 0);
            let stats = desk.stats(0);
            assert!(stats.fallbacks > 0 && (stats.lent > 0) == some_are_lent, "{zero_copy:?} {stats:?}");
            if room == 0 && zero_copy == ZeroCopy::Auto {
                assert_eq!(stats.fallbacks, 1, "it is not tried again");
            }
            assert_eq!(desk.books[book].closed, None);
        }
    }
}
