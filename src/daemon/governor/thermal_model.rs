//! A thermal model of boards, and the controller on it.
//!
//! Two heat capacities: the chip, and the board with what cools it. The processor's power warms the chip, all other power
//! the board. Sources of the constants: a Raspberry Pi 5 without a cooler averages 81 °C under load and 56 with the Active
//! Cooler (Phoronix, "Raspberry Pi 5 Benchmarks", 2023), draws 3 W at rest and about 8 under load, and reaches 80 °C within
//! a few minutes at 22 °C; a Pi 4 draws 2.7 and 6.4 W, rests at 55 °C where it is 27 and begins to throttle at 80
//! (pi-plates.com, "Using a THERMOplate to measure temperatures on the RPi4", 2019). Heat capacities follow from how fast
//! they warm up. Both throttle from 80 °C on.

use super::controller::{EffortController, GovernorInputs};

#[derive(Clone, Copy)]
struct Board {
    name: &'static str,
    idle_watts: f64,
    /// Power that four threads add.
    work_watts: f64,
    /// Kelvin for each watt between chip and board, and between board and air.
    to_board: f64,
    to_air: f64,
    /// Joules for each kelvin.
    chip: f64,
    board: f64,
}

/// The processor's part of the power at rest.
const CHIP_PART: f64 = 0.6;
const THREADS: usize = 4;
/// The firmware lowers the clock from this temperature on.
const THROTTLE_C: f64 = 80.0;

const BOARDS: [Board; 6] = [
    Board {
        name: "Pi 4, bare",
        idle_watts: 2.7,
        work_watts: 3.7,
        to_board: 2.5,
        to_air: 7.2,
        chip: 3.0,
        board: 20.0,
    },
    Board {
        name: "Pi 4, fan",
        idle_watts: 2.7,
        work_watts: 3.7,
        to_board: 2.5,
        to_air: 2.2,
        chip: 3.0,
        board: 25.0,
    },
    Board {
        name: "Pi 5, bare",
        idle_watts: 3.0,
        work_watts: 5.0,
        to_board: 2.0,
        to_air: 7.2,
        chip: 3.0,
        board: 25.0,
    },
    Board {
        name: "Pi 5, fan",
        idle_watts: 3.0,
        work_watts: 5.0,
        to_board: 1.5,
        to_air: 3.0,
        chip: 3.0,
        board: 60.0,
    },
    // What the constants were not chosen for.
    Board {
        name: "large heat sink",
        idle_watts: 3.0,
        work_watts: 5.0,
        to_board: 2.0,
        to_air: 7.0,
        chip: 4.0,
        board: 120.0,
    },
    Board {
        name: "light board",
        idle_watts: 2.5,
        work_watts: 5.0,
        to_board: 3.0,
        to_air: 6.0,
        chip: 2.0,
        board: 14.0,
    },
];

impl Board {
    /// The chip's temperature that a lasting effort ends at.
    fn settled(&self, ambient: f64, effort: f64) -> f64 {
        let work = effort * self.work_watts;
        ambient
            + (self.idle_watts + work) * self.to_air
            + (CHIP_PART * self.idle_watts + work) * self.to_board
    }
}

/// Tokens per second with a number of threads and a part of the time, relative to four threads: decoding is limited by the
/// memory, so that the fourth thread gives little.
fn speed(effort: f64, clock: f64) -> f64 {
    let threads = (effort * THREADS as f64).ceil().max(1.0);
    let duty = effort * THREADS as f64 / threads;
    // The time of a token: what memory takes, and what computing takes.
    let alone = |threads: f64, clock: f64| 1.0 / (0.25 + 0.75 * (1.0 / (threads * clock)).max(0.333));
    duty * alone(threads, clock) / alone(4.0, 1.0)
}

/// A second of the simulation.
struct Second {
    chip_c: f64,
    effort: f64,
    watts: f64,
    tokens: f64,
}

/// Computes for some seconds from a cold start. `govern`: the effort by what the sensor says; the firmware throttles anyway.
fn simulate(
    board: Board,
    ambient: f64,
    seconds: usize,
    mut govern: impl FnMut(f64, f64) -> f64,
) -> Vec<Second> {
    let mut board_c = ambient + board.idle_watts * board.to_air;
    let mut chip_c = board_c + CHIP_PART * board.idle_watts * board.to_board;
    let (mut watts, mut clock) = (board.idle_watts, 1.0f64);
    let mut all = Vec::new();
    for _ in 0..seconds {
        // Steps of the sensor.
        let effort = govern((chip_c / 0.55).round() * 0.55, watts);
        // Down to 1,000 of 2,400 MHz, in steps, as the firmware does it.
        clock = if chip_c > THROTTLE_C + 1.0 {
            (clock - 0.05).max(0.42)
        } else if chip_c < THROTTLE_C {
            (clock + 0.05).min(1.0)
        } else {
            clock
        };
        // Less voltage at a lower clock, and leakage that doubles in 50 degrees, of which an eighth is at 60.
        let leakage = 1.0 + 0.125 * (((chip_c - 60.0) / 50.0).exp2() - 1.0);
        let work = board.work_watts * effort * clock * (0.7 + 0.3 * clock).powi(2) * leakage;
        watts = board.idle_watts + work;
        for _ in 0..10 {
            let flow = (chip_c - board_c) / board.to_board;
            chip_c += 0.1 * (CHIP_PART * board.idle_watts + work - flow) / board.chip;
            let rest = (1.0 - CHIP_PART) * board.idle_watts;
            board_c += 0.1 * (flow + rest - (board_c - ambient) / board.to_air) / board.board;
        }
        all.push(Second { chip_c, effort, watts, tokens: speed(effort, clock) });
    }
    all
}

fn governed(
    board: Board,
    ambient: f64,
    seconds: usize,
    target_c: Option<f64>,
    limit_watts: Option<f64>,
) -> Vec<Second> {
    let mut controller = EffortController::new(target_c, limit_watts, THREADS);
    simulate(board, ambient, seconds, |temperature, watts| {
        let inputs = GovernorInputs {
            temperature_c: Some(temperature),
            watts: Some(watts),
            is_computing: true,
            allowed: 1.0,
        };
        controller.step(inputs).0
    })
}

/// Boards, ambient temperatures and targets where the target is neither reached by resting nor always kept by itself.
fn cases() -> impl Iterator<Item = (Board, f64, f64)> {
    let all = BOARDS.into_iter().flat_map(|board| [20.0, 40.0].map(|ambient| (board, ambient)));
    let all = all.flat_map(|(board, ambient)| [65.0, 70.0, 75.0].map(|target| (board, ambient, target)));
    all.filter(|(board, ambient, target)| {
        board.settled(*ambient, 0.15) < *target && board.settled(*ambient, 1.0) > *target + 1.0
    })
}

#[test]
fn the_target_is_held_within_two_degrees_with_two_changes_a_minute() {
    let mut count = 0;
    for (board, ambient, target) in cases() {
        let seconds = governed(board, ambient, 3000, Some(target), None);
        let place = format!("{}, ambient {ambient}, target {target}", board.name);
        let most = seconds[120..].iter().map(|second| second.chip_c).fold(0.0, f64::max);
        assert!(most <= target + 2.0, "{place}: {most} °C");
        // The large heat sink takes half an hour to get warm.
        let settled = &seconds[1800..];
        let least = settled.iter().map(|second| second.chip_c).fold(f64::MAX, f64::min);
        assert!(least >= target - 2.0, "{place}: {least} °C");
        let changes = settled.windows(2).filter(|pair| pair[0].effort != pair[1].effort).count();
        assert!(changes <= 2 * settled.len() / 60, "{place}: {changes} changes");
        count += 1;
    }
    assert!(count >= 15, "{count} cases");
}

/// Pauses of all threads would keep the same temperature. Compared with that of the firmware, which throttles by a lower clock
/// and with it a lower voltage, nothing is gained for a joule: a token at a low voltage takes less energy than one at the full
/// clock by fewer threads. What the governor avoids is heat, not that.
#[test]
fn fewer_threads_give_more_tokens_for_a_joule_than_pauses_do() {
    for (board, ambient, target) in cases() {
        let seconds = governed(board, ambient, 3000, Some(target), None);
        let settled = &seconds[1800..];
        let paused: f64 = settled.iter().map(|second| second.effort).sum();
        let tokens: f64 = settled.iter().map(|second| second.tokens).sum();
        // Above three quarters all four threads compute.
        let least = if paused < 0.75 * settled.len() as f64 { 1.2 } else { 1.0 } * paused;
        assert!(tokens >= least - 1e-6, "{}, ambient {ambient}, target {target}: {tokens}", board.name);
        assert!(settled.iter().all(|second| second.chip_c < THROTTLE_C), "{}: it throttles", board.name);
    }
}

#[test]
fn the_limit_on_power_is_held() {
    for board in BOARDS {
        for limit in [4.5, 6.0] {
            let seconds = governed(board, 20.0, 600, None, Some(limit));
            let settled = &seconds[60..];
            let most = settled.iter().map(|second| second.watts).fold(0.0, f64::max);
            assert!(most <= 1.03 * limit, "{}, {limit} W: {most}", board.name);
            let mean = settled.iter().map(|second| second.watts).sum::<f64>() / settled.len() as f64;
            let possible = limit.min(board.idle_watts + board.work_watts);
            assert!(mean >= 0.93 * possible, "{}, {limit} W: {mean} on average", board.name);
        }
    }
}

#[test]
fn the_floor_is_never_passed_and_a_cool_board_is_left_alone() {
    let bare = BOARDS[2];
    let hot = governed(bare, 70.0, 1200, Some(60.0), Some(1.0));
    let least = hot.iter().map(|second| second.effort).fold(1.0, f64::min);
    assert!((0.1..0.11).contains(&least), "{least}");
    assert!(governed(BOARDS[1], 20.0, 1200, Some(75.0), None).iter().all(|second| second.effort == 1.0));
}

#[test]
fn what_is_learned_at_rest_is_nothing() {
    let mut controller = EffortController::new(Some(70.0), None, THREADS);
    let inputs = GovernorInputs { temperature_c: Some(69.0), watts: None, is_computing: false, allowed: 1.0 };
    let rests: Vec<f64> = (0..4000).map(|_| controller.step(inputs).0).collect();
    assert_eq!(rests[1000], rests[3999]);
    // Without a reading nothing is limited.
    let mut controller = EffortController::new(Some(70.0), Some(5.0), THREADS);
    let blind = GovernorInputs { allowed: 1.0, ..GovernorInputs::default() };
    assert!((0..100).all(|_| controller.step(blind).0 == 1.0));
    // What is allowed counts at once.
    assert_eq!(controller.step(GovernorInputs { allowed: 0.5, ..blind }).0, 0.5);
}
