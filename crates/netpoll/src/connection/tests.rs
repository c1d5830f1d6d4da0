use super::*;

#[cfg(not(loom))]
mod sequences;

const SECOND: Duration = Duration::from_secs(1);

fn limits() -> Limits {
    Limits { read_high_water_mark: 1000, idle_timeout: None, write_timeout: Some(SECOND) }
}

fn connection(now: Instant) -> Connection {
    Connection::new(&limits(), now)
}

#[test]
fn reading_stops_at_the_mark_and_goes_on_with_credit() {
    let mut connection = connection(Instant::now());
    connection.input.delivered = 1000;
    assert!(!connection.may_read());
    connection.input.credit(1, 1000, false);
    assert!(connection.may_read());
}

#[test]
fn a_raised_mark_lets_reading_go_on() {
    let mut connection = connection(Instant::now());
    connection.input.delivered = 1000;
    connection.input.credit(0, 2000, false);
    assert!(connection.may_read());
}

#[test]
fn credit_for_more_than_was_delivered_counts_as_all() {
    let mut connection = connection(Instant::now());
    connection.input.delivered = 10;
    connection.input.credit(u32::MAX, 1000, false);
    assert_eq!(connection.input.unread(), 0);
}

#[test]
fn each_direction_ends_apart() {
    let mut connection = connection(Instant::now());
    connection.input.ended = true;
    assert!(!connection.is_finished());
    assert!(connection.output.is_open());
    connection.output.ended = true;
    assert!(connection.is_finished());
}

#[test]
fn a_closed_connection_is_finished_without_the_peers_end() {
    let mut connection = connection(Instant::now());
    connection.output.finish(Finish::Close);
    assert!(!connection.may_read());
    connection.output.ended = true;
    assert!(connection.is_finished());
}

#[test]
fn an_end_after_close_does_not_undo_it() {
    let mut output = Output::default();
    output.finish(Finish::Close);
    output.finish(Finish::End);
    assert_eq!(output.finish, Finish::Close);
}

#[test]
fn after_a_failed_send_reading_goes_on_whatever_the_limits_say() {
    let mut connection = connection(Instant::now());
    connection.input.paused = true;
    connection.input.delivered = 5000;
    connection.fail(Cause::ORDERLY);
    assert!(connection.may_read());
    assert!(!connection.is_finished());
    connection.input.ended = true;
    assert!(connection.is_finished());
}

#[test]
fn a_watch_is_answered_once_when_its_count_is_reached() {
    let mut output = Output { sent: u64::from(u32::MAX), ..Output::default() };
    output.watch(2);
    assert!(!output.take_drained());
    output.sent += 3;
    assert!(output.take_drained());
    assert!(!output.take_drained());
}

#[test]
fn a_watch_on_an_ended_output_is_answered() {
    let mut output = Output { ended: true, ..Output::default() };
    output.watch(7);
    assert!(output.take_drained());
}

#[test]
fn the_read_deadline_fires_once_with_its_sequence() {
    let now = Instant::now();
    let mut connection = connection(now);
    connection.deadlines.set(Deadline::Read, 1000, 7, now);
    assert_eq!(connection.expired(now), None);
    assert_eq!(connection.deadline(), Some(now + SECOND));
    assert_eq!(connection.expired(now + SECOND), Some(Expired::Told(Deadline::Read, 7)));
    assert_eq!(connection.deadline(), None);
}

#[test]
fn the_idle_deadline_moves_with_traffic_and_rests_after_it_fired() {
    let now = Instant::now();
    let mut connection = Connection::new(&Limits { idle_timeout: Some(SECOND), ..limits() }, now);
    connection.deadlines.last_traffic = now + SECOND / 2;
    assert_eq!(connection.expired(now + SECOND), None);
    assert_eq!(connection.expired(now + SECOND * 2), Some(Expired::Told(Deadline::Idle, 0)));
    assert_eq!(connection.deadline(), None);
    connection.deadlines.set(Deadline::Idle, 1000, 1, now + SECOND * 2);
    assert_eq!(connection.deadline(), Some(now + SECOND * 3));
}

#[test]
fn the_write_deadline_holds_only_while_the_kernel_takes_nothing() {
    let now = Instant::now();
    let mut connection = connection(now);
    assert_eq!(connection.deadline(), None);
    connection.output.wait(now, 100);
    assert_eq!(connection.expired(now + SECOND), Some(Expired::Write));
}

/// One of which the kernel was lent a send, about which nobody asks it here.
fn lending(now: Instant) -> Connection {
    let mut connection = connection(now);
    connection.output.lending.ledger.record(0, 10, Vec::new());
    connection
}

#[test]
fn a_connection_that_has_ended_stays_while_the_kernel_holds_memory_but_not_one_that_has_failed() {
    let mut connection = lending(Instant::now());
    (connection.input.ended, connection.output.ended) = (true, true);
    assert!(!connection.is_finished());
    connection.fail(Cause::WRITE_TIMEOUT);
    assert!(connection.is_finished());
}

#[test]
fn a_report_begins_the_write_timeout_anew_while_anything_waits() {
    let (now, later) = (Instant::now(), Instant::now() + SECOND / 2);
    let mut connection = lending(now);
    connection.output.wait(now, 10);
    connection.output.returned(later);
    assert_eq!(connection.deadline(), Some(later + SECOND), "for the rest of what it holds");
    connection.output.lending.ledger.release();
    connection.output.is_blocked = true;
    connection.output.returned(later);
    assert_eq!(connection.deadline(), Some(later + SECOND), "for what it has no room for");
    connection.output.is_blocked = false;
    connection.output.returned(later);
    assert_eq!(connection.deadline(), None, "nothing waits");
}

#[test]
fn a_failed_connection_waits_for_no_room() {
    let now = Instant::now();
    let mut connection = connection(now);
    connection.output.is_blocked = true;
    connection.output.wait(now, 100);
    connection.fail(Cause::ORDERLY);
    // What the kernel was lent has come back.
    connection.output.returned(now);
    assert_eq!(connection.deadline(), None);
}

#[test]
fn a_timeout_of_zero_disarms() {
    let now = Instant::now();
    let mut connection = connection(now);
    connection.deadlines.set(Deadline::Read, 1000, 1, now);
    connection.deadlines.set(Deadline::Read, 0, 2, now);
    assert_eq!(connection.deadline(), None);
}
