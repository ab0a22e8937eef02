//! The advice for recorded boards, and for what their recordings do not have.

use super::advice::{Advice, AdviceFacts, ContextFacts, HeadSizes, advice};
use super::limit_problem;
use crate::protocol::{Method, Reading, Thermal, Throttled, Throttling};
use crate::telemetry::sensors::{
    self, FrequencyGovernor, HostTuning, MemoryLimit, Sensors, Snapshot, host_tuning,
};
use std::path::{Path, PathBuf};
use std::time::Instant;

fn board(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/boards").join(name)
}

/// A board in order, with a model that reads 500 MB a token.
fn sound<'f>(thermal: &'f Thermal, tuning: &'f HostTuning) -> AdviceFacts<'f> {
    AdviceFacts {
        threads: 4,
        processors: 4,
        active_threads: 4,
        expected: 8.0,
        measured: 7.0,
        weight_bytes: 500_000_000,
        head: None,
        context: ContextFacts { planned: 512, wanted: 512, bytes_per_position: 76_800, is_int8: false },
        read_again: Some(0),
        available: Some(300 << 20),
        thermal,
        clock_mhz: Some((1800.0, 1800.0)),
        tuning,
        limit: MemoryLimit::NotSet,
    }
}

/// Advice for a board in order but for what `change` does.
fn changed(change: impl FnOnce(&mut AdviceFacts<'_>)) -> Vec<Advice> {
    let (thermal, tuning) = (Thermal::default(), HostTuning::default());
    let mut facts = sound(&thermal, &tuning);
    change(&mut facts);
    advice(&facts)
}

fn topics(all: &[Advice]) -> Vec<&'static str> {
    all.iter().map(|piece| piece.topic).collect()
}

/// The advice for a recorded board, on which all else is in order.
fn of_board(name: &str) -> Vec<Advice> {
    let Snapshot { thermal, cpu, memory, .. } = Sensors::new(&board(name)).read(Instant::now());
    let tuning = host_tuning(&board(name));
    let clock = cpu.frequency.map(|clock| clock.value);
    advice(&AdviceFacts {
        available: memory.host_available_bytes,
        clock_mhz: clock.zip(cpu.frequency_max_mhz),
        limit: sensors::memory_limit(&board(name)),
        ..sound(&thermal, &tuning)
    })
}

#[test]
fn a_device_in_order_gets_no_advice() {
    assert_eq!(changed(|_| {}), []);
}

#[test]
fn recorded_boards_get_advice_for_what_they_have() {
    let zero = of_board("zero2");
    assert_eq!(topics(&zero), ["governor", "swap", "supply", "memory_limit"]);
    assert!(zero[0].text.contains("powersave, 600 of 1000 MHz now"), "{zero:?}");
    assert_eq!(zero[0].estimated_gain, Some(1.67));
    assert!(zero[0].text.ends_with("up to 1.67 times as fast (ESTIMATED)"), "{zero:?}");
    let swapped =
        "93 MiB of this process are in compressed memory (zram), of which the host uses 391 of 511 MiB";
    assert!(zero[1].text.starts_with(swapped), "{zero:?}");
    let pi5 = of_board("pi5");
    assert_eq!(topics(&pi5), ["memory_limit"]);
    assert!(pi5[0].text.contains("cgroup_enable=memory"), "{pi5:?}");
    assert_eq!(topics(&of_board("pi4")), [""; 0]);
}

#[test]
fn the_largest_gain_comes_first_and_each_piece_names_its_number() {
    let all = changed(|facts| {
        facts.threads = 1;
        facts.active_threads = 1;
        facts.head = Some(HeadSizes { whole: 300_000_000, screened: 50_000_000 });
        facts.context = ContextFacts { planned: 4096, wanted: 8192, ..facts.context };
        facts.limit = MemoryLimit::NoController;
    });
    assert_eq!(topics(&all), ["threads", "head", "context", "context", "memory_limit"]);
    let gains: Vec<_> = all.iter().map(|piece| piece.estimated_gain).collect();
    assert_eq!(gains, [Some(4.0), Some(2.0), Some(1.24), None, None]);
    assert!(all[0].text.starts_with("allow 4 threads") && all[0].text.contains("instead of 1"), "{all:?}");
    assert!(all[1].text.contains("300 MB of the 500 MB"), "{all:?}");
    assert!(all[2].text.contains("4096 tokens") && all[2].text.contains("315 MB of KV cache"), "{all:?}");
    assert!(all[3].text.contains("from 8192 to 4096 tokens"), "{all:?}");
}

#[test]
fn threads_that_were_not_used_and_gains_too_small_to_notice_are_no_advice() {
    let unused = changed(|facts| (facts.threads, facts.active_threads) = (3, 2));
    assert_eq!(topics(&unused), [""; 0]);
    let small = changed(|facts| {
        facts.head = Some(HeadSizes { whole: 10_000_000, screened: 9_000_000 });
        facts.context.is_int8 = true;
        facts.read_again = Some(4_000_000);
    });
    assert_eq!(topics(&small), [""; 0]);
}

#[test]
fn a_smaller_cache_is_no_advice_where_arithmetic_takes_the_time() {
    let said = |measured| {
        changed(|facts| {
            facts.context = ContextFacts { planned: 8192, wanted: 8192, ..facts.context };
            facts.measured = measured;
        })
    };
    assert_eq!((topics(&said(4.1)), topics(&said(3.9))), (vec!["context"], vec![]));
}

#[test]
fn weights_that_are_read_from_the_disk_again_show_short_memory() {
    let all = changed(|facts| {
        facts.measured = 2.0;
        facts.read_again = Some(120_000_000);
    });
    assert_eq!((topics(&all), all[0].estimated_gain), (vec!["memory"], Some(4.0)));
    assert!(all[0].text.contains("about 120 MB of the 500 MB"), "{all:?}");
    assert!(all[0].text.contains("300 MiB are free"), "{all:?}");
}

#[test]
fn heat_is_judged_by_the_firmware_and_by_the_temperature() {
    let none = Throttled::default();
    let hot = Throttled { throttled: true, ..none };
    let flags = |now, since_boot| {
        let (source, scope) = ("/dev/vcio".into(), "board".into());
        Some(Throttling { now, since_boot, method: Method::Measured, source, scope })
    };
    let reading = |value| {
        let (source, scope) = (String::new(), "cpu".into());
        Some(Reading { value, unit: "°C", method: Method::Measured, source, scope })
    };
    let said = |throttling, celsius| {
        let thermal = Thermal { cpu: reading(celsius), throttling, ..Thermal::default() };
        advice(&sound(&thermal, &HostTuning::default())).pop().map(|piece| piece.text)
    };
    let begins = |text: Option<String>, start: &str| text.is_some_and(|text| text.starts_with(start));
    assert!(begins(said(flags(hot, hot), 84.2), "the firmware throttles the processor now, 84.2 °C"));
    assert!(begins(said(None, 81.0), "the processor is hot, 81.0 °C"));
    assert!(begins(said(flags(none, hot), 50.0), "the firmware has throttled"));
    assert_eq!(said(flags(none, none), 79.0), None);
    let weak = Throttled { under_voltage: true, ..none };
    assert!(begins(said(flags(none, weak), 50.0), "under-voltage since the device was switched on"));
}

#[test]
fn a_driver_that_chooses_the_frequency_itself_is_left_alone() {
    let said = |name: &str, driver: &str, clock_mhz| {
        let governor = FrequencyGovernor { name: name.into(), driver: Some(driver.into()) };
        let tuning = HostTuning { governor: Some(governor), ..HostTuning::default() };
        let all = advice(&AdviceFacts { clock_mhz, ..sound(&Thermal::default(), &tuning) });
        all.first().map(|piece| piece.estimated_gain)
    };
    assert_eq!(said("powersave", "intel_pstate", Some((800.0, 4000.0))), None);
    assert_eq!(said("ondemand", "cpufreq-dt", Some((600.0, 1800.0))), None);
    assert_eq!(said("powersave", "cpufreq-dt", None), Some(None));
    assert_eq!(said("conservative", "cpufreq-dt", Some((900.0, 1800.0))), Some(Some(2.0)));
}

#[test]
fn a_board_without_the_memory_controller_gets_a_remedy() {
    let report = |name| limit_problem(sensors::memory_limit(&board(name)));
    assert!(
        report("pi5").is_some_and(|report| report.contains("cgroup_enable=memory")),
        "{:?}",
        report("pi5")
    );
    assert!(
        report("x86-rapl").is_some_and(|report| report.contains("MemoryMax=")),
        "{:?}",
        report("x86-rapl")
    );
    assert_eq!(report("pi4"), None);
}
