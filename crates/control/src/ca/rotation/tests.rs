//! Each rule of the rotation by itself, and what comes of them over a day.

use fastrand::Rng;

use super::*;

fn web() -> Identity {
    named("web")
}

fn named(account: &str) -> Identity {
    Identity::new("cluster.local", "retail", account).expect("a good identity")
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// Starts the one that is due.
fn started(rotation: &mut Rotation, now: Instant) -> Ticket {
    rotation.start(now).expect("something is due").1
}

#[test]
fn a_certificate_that_ended_while_the_machine_slept_is_asked_for_at_once_and_wishes_count_again() {
    let (mut rotation, start) = (Rotation::default(), Instant::now());
    let (slept, short) = (named("slept"), named("short"));
    for (one, lifetime) in [(&slept, DAY), (&short, DAY / 96)] {
        rotation.want(one, Priority::Warmup, start);
        let (_, ticket) = rotation.start(start).expect("wanted");
        assert!(rotation.issued(one, ticket, start, lifetime, 0));
    }
    assert_eq!(rotation.start(start), None, "both are good");
    // A quarter of an hour passed by the wall clock, and none by ours.
    rotation.leap(DAY / 96, start);
    let (due, ticket) = rotation.start(start).expect("one has ended");
    assert_eq!(due, short);
    assert_eq!(rotation.failed(&short, ticket, start, 0), AfterFailure::Unavailable, "it is of no use any more");
    assert!(rotation.next_due().expect("both") > start);
    rotation.leap(DAY, start);
    rotation.want(&slept, Priority::Connection, start);
    assert_eq!(rotation.start(start).map(|(identity, _)| identity), Some(slept), "a connection waits for it");
}

#[test]
fn later_certificates_are_renewed_at_half_of_their_life_and_the_first_at_any_time_before() {
    for draw in 0..200 {
        let (mut rotation, start) = (Rotation::default(), Instant::now());
        rotation.want(&web(), Priority::Warmup, start);
        let ticket = started(&mut rotation, start);
        assert!(rotation.issued(&web(), ticket, start, DAY, draw));
        let first = rotation.next_due().expect("kept") - start;
        assert!((DAY.mul_f64(0.02)..=DAY.mul_f64(0.5)).contains(&first), "{first:?}");
        let now = start + first;
        let ticket = started(&mut rotation, now);
        assert!(rotation.issued(&web(), ticket, now, DAY, draw));
        let later = rotation.next_due().expect("kept") - now;
        assert!((DAY.mul_f64(0.45)..=DAY.mul_f64(0.5)).contains(&later), "{later:?}");
    }
}

#[test]
fn a_certificate_that_is_about_to_end_is_not_renewed_without_pause() {
    let (mut rotation, start) = (Rotation::default(), Instant::now());
    rotation.want(&web(), Priority::Warmup, start);
    let ticket = started(&mut rotation, start);
    rotation.issued(&web(), ticket, start, Duration::ZERO, 0);
    assert!(rotation.next_due().expect("kept") >= start + WAIT_MIN);
}

#[test]
fn a_failure_keeps_the_certificate_until_it_ends_and_waits_longer_each_time() {
    let (mut rotation, start) = (Rotation::default(), Instant::now());
    rotation.want(&web(), Priority::Warmup, start);
    let ticket = started(&mut rotation, start);
    rotation.issued(&web(), ticket, start, DAY, 0);
    let mut now = start + DAY / 2;
    let mut waits = Vec::new();
    for _ in 0..10 {
        let ticket = started(&mut rotation, now);
        assert_eq!(rotation.failed(&web(), ticket, now, u64::MAX / 2), AfterFailure::Keep);
        let due = rotation.next_due().expect("kept");
        waits.push((due - now).as_secs_f64().round());
        now = due;
    }
    assert_eq!(waits, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 150.0, 150.0]);
    let ticket = started(&mut rotation, start + DAY);
    assert_eq!(rotation.failed(&web(), ticket, start + DAY, 0), AfterFailure::Unavailable);
}

#[test]
fn the_last_try_is_not_after_the_end() {
    let (mut rotation, start) = (Rotation::default(), Instant::now());
    rotation.want(&web(), Priority::Warmup, start);
    let ticket = started(&mut rotation, start);
    let lifetime = Duration::from_secs(2);
    rotation.issued(&web(), ticket, start, lifetime, 0);
    let now = start + lifetime - WAIT_MIN / 4;
    let ticket = started(&mut rotation, now);
    assert_eq!(rotation.failed(&web(), ticket, now, 0), AfterFailure::Keep);
    assert_eq!(rotation.next_due(), Some(start + lifetime));
}

#[test]
fn without_a_certificate_a_failure_is_told_and_success_starts_anew() {
    let (mut rotation, start) = (Rotation::default(), Instant::now());
    rotation.want(&web(), Priority::Warmup, start);
    let mut now = start;
    for _ in 0..40 {
        let ticket = started(&mut rotation, now);
        assert_eq!(rotation.failed(&web(), ticket, now, u64::MAX), AfterFailure::Unavailable);
        let due = rotation.next_due().expect("kept");
        assert!(due <= now + WAIT_MAX);
        now = due;
    }
    let ticket = started(&mut rotation, now);
    rotation.issued(&web(), ticket, now, DAY, 0);
    now += DAY / 2;
    let ticket = started(&mut rotation, now);
    rotation.failed(&web(), ticket, now, u64::MAX / 2);
    assert!(rotation.next_due().expect("kept") < now + Duration::from_secs(2));
    rotation.forget(&web());
    assert_eq!(rotation.next_due(), None);
}

#[test]
fn no_more_are_asked_for_at_once_than_may_be_and_the_urgent_first() {
    let (mut rotation, start) = (Rotation::with_limit(2), Instant::now());
    let later = start + WAIT_MIN;
    rotation.want(&named("a"), Priority::Warmup, later);
    rotation.want(&named("b"), Priority::Warmup, start);
    rotation.want(&named("c"), Priority::Warmup, start);
    rotation.want(&named("d"), Priority::Connection, later);
    rotation.want(&named("c"), Priority::Connection, later);
    rotation.want(&named("c"), Priority::Warmup, later);
    let mut order = Vec::new();
    let mut flying = Vec::new();
    for _ in 0..2 {
        while let Some((identity, ticket)) = rotation.start(later) {
            order.push(identity.service_account().to_owned());
            flying.push((identity, ticket));
        }
        assert_eq!((flying.len(), rotation.next_due()), (2, None), "two and no more");
        for (identity, ticket) in flying.drain(..) {
            assert!(rotation.issued(&identity, ticket, later, DAY, 0));
        }
    }
    assert_eq!(order, ["c", "d", "b", "a"], "a connection's before a pod's, and the older before the newer");
}

#[test]
fn an_answer_for_somebody_who_has_gone_or_come_back_is_not_wanted() {
    let (mut rotation, start) = (Rotation::with_limit(1), Instant::now());
    rotation.want(&web(), Priority::Warmup, start);
    let old = started(&mut rotation, start);
    rotation.forget(&web());
    rotation.want(&web(), Priority::Warmup, start);
    assert_eq!(rotation.start(start), None, "the old request counts until it is over");
    assert!(!rotation.issued(&web(), old, start, DAY, 0));
    let new = started(&mut rotation, start);
    assert!(rotation.issued(&web(), new, start, DAY, 0));
    rotation.forget(&web());
    rotation.want(&web(), Priority::Warmup, start);
    let old = started(&mut rotation, start);
    rotation.forget(&web());
    assert_eq!(rotation.failed(&web(), old, start, 0), AfterFailure::Keep);
}

#[test]
fn when_the_roots_may_be_others_one_certificate_is_renewed_now_and_the_others_in_their_time() {
    let (mut rotation, start) = (Rotation::default(), Instant::now());
    for account in ["a", "b", "c"] {
        rotation.want(&named(account), Priority::Warmup, start);
        let ticket = started(&mut rotation, start);
        rotation.issued(&named(account), ticket, start, DAY, 7);
    }
    assert_eq!(rotation.start(start), None);
    rotation.hasten(start);
    let (identity, ticket) = rotation.start(start).expect("one is due now");
    assert_eq!(rotation.start(start), None, "and no other");
    assert!(rotation.issued(&identity, ticket, start, DAY, 7));
    assert!(rotation.next_due().expect("kept") > start);
}

/// Five hundred identities whose pods came at one moment, an hour of life each, a CA that answers within 10 ms.
#[test]
fn renewals_of_what_was_issued_at_one_time_never_synchronise() {
    for seed in 0..2 {
        let (mut rng, start) = (Rng::with_seed(seed), Instant::now());
        let mut rotation = Rotation::default();
        let identities: Vec<Identity> = (0..500).map(|n| named(&format!("sa-{n}"))).collect();
        for identity in &identities {
            rotation.want(identity, Priority::Warmup, start);
        }
        let mut now = start;
        let mut minutes = vec![0_u32; 6 * 60];
        while now < start + HOUR * 6 {
            while let Some((identity, ticket)) = rotation.start(now) {
                assert!(rotation.issued(&identity, ticket, now, HOUR, rng.u64(..)));
                if let Some(minute) = minutes.get_mut(usize::try_from((now - start).as_secs() / 60).expect("few")) {
                    *minute += 1;
                }
            }
            now = rotation.next_due().expect("all are kept");
        }
        // Without the first minute, in which there was none and all were wanted.
        let later = &minutes[1..];
        let mean = f64::from(later.iter().sum::<u32>()) / later.len() as f64;
        let peak = f64::from(*later.iter().max().expect("some")) / mean;
        assert!(peak <= 1.5, "seed {seed}: a minute with {peak:.2} times the mean of {mean:.1}");
    }
}

/// The same, and the CA is away for six hours: nothing fails that had a valid certificate, and when it is back it is not
/// run over.
#[test]
fn a_ca_that_is_away_for_six_hours_fails_nobody_who_has_a_day() {
    let (mut rng, start) = (Rng::with_seed(7), Instant::now());
    let mut rotation = Rotation::default();
    for n in 0..100 {
        rotation.want(&named(&format!("sa-{n}")), Priority::Warmup, start);
    }
    let away = start + HOUR * 10..start + HOUR * 16;
    let (mut now, mut failures, mut longest_in_flight) = (start, 0, 0);
    while now < start + DAY * 2 {
        let mut flying = Vec::new();
        while let Some(one) = rotation.start(now) {
            flying.push(one);
        }
        longest_in_flight = longest_in_flight.max(flying.len());
        for (identity, ticket) in flying {
            if away.contains(&now) {
                assert_eq!(rotation.failed(&identity, ticket, now, rng.u64(..)), AfterFailure::Keep, "{identity}");
                failures += 1;
            } else {
                rotation.issued(&identity, ticket, now, DAY, rng.u64(..));
            }
        }
        now = now.max(rotation.next_due().expect("all are kept"));
    }
    assert!(failures > 100 && longest_in_flight <= IN_FLIGHT_MAX, "{failures} {longest_in_flight}");
}
