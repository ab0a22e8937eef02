use super::StepColumn as C;
use super::*;
use crate::telemetry::latency::histogram::{BucketIndex, Histogram};

/// Saturday, 28 November 2026, 00:00 UTC.
const START_S: u64 = 1_795_824_000;

/// A history with clocks of its own.
struct Observed {
    history: History,
    now: Instant,
    wall: SystemTime,
    sample: HistorySample,
    latencies: [Histogram; 2],
}

impl Observed {
    fn new(steps: HistorySteps, wall_s: u64) -> Self {
        let sample = HistorySample { budget_bytes: 1 << 30, ..HistorySample::default() };
        Observed {
            history: History::new(steps),
            now: Instant::now(),
            wall: UNIX_EPOCH + Duration::from_secs(wall_s),
            sample,
            latencies: [Histogram::default(), Histogram::default()],
        }
    }

    /// Lets time pass in steps, with a sample behind each.
    fn run(&mut self, length: Duration, step: Duration) {
        let end = self.now + length;
        while self.now < end {
            self.now += step;
            self.wall += step;
            self.observe();
        }
    }

    fn seconds(&mut self, seconds: u64) {
        self.run(Duration::from_secs(seconds), Duration::from_secs(1));
    }

    fn observe(&mut self) {
        let latencies = [&self.latencies[0], &self.latencies[1]];
        self.history.observe(self.now, self.wall, &self.sample, latencies);
    }

    fn answer(&mut self, ms: u64) {
        self.sample.counts.completed += 1;
        for histogram in &mut self.latencies {
            histogram.add(BucketIndex::of(Duration::from_millis(ms)), 1);
        }
    }

    fn steps(&self) -> HistorySteps {
        self.history.steps([&self.latencies[0], &self.latencies[1]])
    }
}

fn sum(ring: &StepRing, column: StepColumn) -> f64 {
    ring.steps().iter().map(|step| step.count(column)).sum()
}

#[test]
fn a_minute_has_what_was_seen_and_counted_in_it() {
    let mut observed = Observed::new(HistorySteps::default(), START_S);
    observed.sample = HistorySample {
        power_w: Some(4.0),
        temperature_c: Some(60.0),
        throttled: Some(false),
        memory_bytes: Some(64 << 20),
        ..observed.sample
    };
    observed.observe();
    observed.seconds(30);
    observed.sample =
        HistorySample { power_w: Some(8.0), throttled: Some(true), queued: 3, ..observed.sample };
    observed.answer(100);
    observed.answer(300);
    observed.seconds(15);
    observed.sample = HistorySample { throttled: Some(false), alert_bits: 2, ..observed.sample };
    observed.seconds(15);
    let steps = observed.steps();
    let step = steps.minutes.steps()[0];
    assert_eq!(u64::from(step.minute) * 60, START_S);
    let values = [
        C::ObservedS,
        C::Starts,
        C::PowerMean,
        C::PowerMin,
        C::PowerMax,
        C::ThrottledS,
        C::QueueMax,
        C::Completed,
        C::AlertBits,
    ];
    let values = values.map(|column| step.count(column));
    assert_eq!(values, [60.0, 1.0, 6.0, 4.0, 8.0, 15.0, 3.0, 2.0, 2.0]);
    assert_eq!((step.get(C::UnderVoltageS), step.get(C::Joules)), (None, None), "no sensor, no number");
    assert_eq!(step.get(C::MemoryMax), Some(65536.0));
    let near = |column, ms: f64| (step.count(column) / ms - 1.0).abs() < 0.02;
    assert!(near(C::TtftP50, 100.0) && near(C::TotalP99, 300.0), "{step:?}");
    assert_eq!(steps.quarters.steps()[0].get(C::Completed), Some(2.0));
}

#[test]
fn percentiles_of_a_step_know_nothing_of_the_steps_before() {
    let mut observed = Observed::new(HistorySteps::default(), START_S);
    observed.observe();
    (0..50).for_each(|_| observed.answer(10));
    observed.seconds(61);
    observed.answer(5000);
    observed.seconds(60);
    let steps = observed.steps();
    let second = steps.minutes.steps()[1];
    assert_eq!(second.get(C::TtftCount), Some(1.0));
    assert!((second.count(C::TtftP50) / 5000.0 - 1.0).abs() < 0.02);
    let quarter = steps.quarters.steps()[0];
    assert_eq!(quarter.get(C::TtftCount), Some(51.0));
    assert!((quarter.count(C::TtftP50) / 10.0 - 1.0).abs() < 0.02, "of all of them");
}

#[test]
fn weeks_take_no_more_memory_than_their_rings() {
    let mut observed = Observed::new(HistorySteps::default(), START_S);
    let weeks = Duration::from_secs(5 * 7 * 86_400);
    for day in 0..35 {
        observed.sample.power_w = Some(f64::from(day));
        observed.answer(100);
        observed.run(weeks / 35, Duration::from_secs(10));
    }
    let steps = observed.steps();
    assert_eq!((steps.minutes.steps().len(), steps.quarters.steps().len()), (1440, 2880));
    assert_eq!(steps.minutes.steps()[700].get(C::PowerMean), Some(34.0), "the last day");
    let first = steps.quarters.steps()[0];
    assert_eq!(first.get(C::ObservedS), Some(900.0));
    assert_eq!(first.get(C::PowerMean), Some(5.0), "30 days ago");
    assert_eq!(sum(&steps.quarters, C::Completed), 29.0);
    let bytes = (1440 + 2880) * size_of::<StepRecord>();
    assert_eq!(bytes, 362_880, "as the documentation says");
}

#[test]
fn a_machine_that_slept_leaves_a_gap_and_a_restart_goes_on() {
    let mut observed = Observed::new(HistorySteps::default(), START_S);
    observed.observe();
    observed.seconds(90);
    observed.now += Duration::from_secs(3600);
    observed.wall += Duration::from_secs(3600);
    observed.seconds(30);
    let steps = observed.steps();
    let minutes: Vec<u32> = steps.minutes.steps().iter().map(|step| step.minute % 1440).collect();
    assert_eq!(minutes, [0, 1, 61, 62]);
    assert_eq!(sum(&steps.minutes, C::ObservedS), 119.0, "not the hour");

    let mut again = Observed::new(steps, START_S + 3600 + 150);
    again.observe();
    again.answer(1);
    again.seconds(10);
    let steps = again.steps();
    assert_eq!(sum(&steps.minutes, C::Starts), 2.0);
    assert_eq!(sum(&steps.minutes, C::ObservedS), 129.0);
    assert_eq!(
        (steps.minutes.steps().len(), steps.quarters.steps().len()),
        (4, 2),
        "merged with what is there"
    );
}

#[test]
fn counts_of_a_gap_are_not_lost() {
    let mut observed = Observed::new(HistorySteps::default(), START_S);
    observed.observe();
    observed.answer(1);
    observed.now += Duration::from_secs(600);
    observed.wall += Duration::from_secs(600);
    observed.observe();
    assert_eq!(sum(&observed.steps().minutes, C::Completed), 1.0);
}

#[test]
fn a_clock_that_jumps_loses_no_count_and_breaks_no_order() {
    let mut observed = Observed::new(HistorySteps::default(), START_S);
    observed.observe();
    let mut answers = 0.0;
    for jump_s in [86_400i64 * 365, -86_400 * 366, 3600, -30, 90, -7200, 2_000_000_000, -2_100_000_000] {
        for _ in 0..3 {
            observed.answer(5);
            answers += 1.0;
            observed.seconds(50);
        }
        let jump = Duration::from_secs(jump_s.unsigned_abs());
        let moved =
            if jump_s > 0 { observed.wall.checked_add(jump) } else { observed.wall.checked_sub(jump) };
        observed.wall = moved.expect("a time of this platform");
    }
    observed.seconds(1);
    let steps = observed.steps();
    for ring in [&steps.minutes, &steps.quarters] {
        assert_eq!(sum(ring, C::Completed), answers);
        assert!(
            ring.steps().iter().zip(ring.steps().iter().skip(1)).all(|(one, next)| one.minute < next.minute)
        );
        assert!(ring.steps().iter().all(|step| step.minute % ring.length() == 0));
    }
}

#[test]
fn steps_of_a_wrong_clock_make_place_once_the_clock_is_right() {
    // The clock is twenty years ahead for a day and a half, and then it is right.
    let mut observed = Observed::new(HistorySteps::default(), START_S + 20 * 365 * 86_400);
    observed.observe();
    observed.run(Duration::from_secs(36 * 3600), Duration::from_secs(10));
    observed.wall = UNIX_EPOCH + Duration::from_secs(START_S);
    observed.run(Duration::from_secs(26 * 3600), Duration::from_secs(10));
    let steps = observed.steps();
    let right = (START_S / 60) as u32..minute_of(observed.wall) + 1;
    let count = steps.minutes.steps().iter().filter(|step| right.contains(&step.minute)).count();
    assert!(count >= 1438, "{count} of the last 24 hours");
}

#[test]
fn a_board_that_starts_with_an_old_clock_keeps_its_history() {
    let mut first = Observed::new(HistorySteps::default(), START_S);
    first.observe();
    first.run(Duration::from_secs(40 * 3600), Duration::from_secs(10));
    let before = first.steps();
    // An hour of power cut; the clock begins with the day before and is set two minutes later.
    let mut second = Observed::new(before.clone(), START_S + 20 * 3600);
    second.observe();
    second.seconds(120);
    second.wall = UNIX_EPOCH + Duration::from_secs(START_S + 41 * 3600);
    second.seconds(120);
    let kept = second.steps();
    let is_there = |step: &&StepRecord| kept.minutes.steps().iter().any(|known| known.minute == step.minute);
    let lost = before.minutes.steps().iter().filter(|step| !is_there(step)).count();
    assert!(lost <= 4, "{lost} of the oldest made place for new ones");
}
