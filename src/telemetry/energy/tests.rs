//! Known traces of power, sampled as the daemon samples, and the energy that comes out.

use super::*;

fn reading(value: f64, method: Method) -> Reading {
    Reading { value, unit: "W", method, source: "/sys/p".into(), scope: "board".into() }
}

fn after(start: Instant, seconds: f64) -> Instant {
    start + Duration::from_secs_f64(seconds)
}

/// A device whose power is known at each moment, and a meter that samples it.
struct Device<P> {
    watts: P,
    method: Method,
    start: Instant,
    meter: Meter,
    /// Of the last sample, in seconds; and of the one before it that had a mean of its own, with that mean.
    sampled: f64,
    whole: f64,
    mean: f64,
    /// Requests: begin and end, in seconds.
    requests: Vec<(f64, f64)>,
    costs: Vec<Option<RequestEnergy>>,
}

/// The area below the power, in steps of a millisecond at most.
fn area(watts: impl Fn(f64) -> f64, from: f64, to: f64) -> f64 {
    let steps = ((to - from) * 1e3).ceil().max(1.0);
    let step = (to - from) / steps;
    (0..steps as u64).map(|n| watts(from + (n as f64 + 0.5) * step) * step).sum()
}

impl<P: Fn(f64) -> f64> Device<P> {
    fn new(method: Method, watts: P) -> Self {
        let (start, meter) = (Instant::now(), Meter::default());
        Device {
            watts,
            method,
            start,
            meter,
            sampled: 0.0,
            whole: 0.0,
            mean: 0.0,
            requests: vec![],
            costs: vec![],
        }
    }

    /// As a sensor tells it: a counter the mean since it was asked before, and that again to who asks too soon;
    /// others the power of just then.
    fn sample(&mut self, at: f64) {
        let shortest =
            if self.method == Method::Derived { MIN_DERIVED_INTERVAL } else { MIN_ESTIMATE_INTERVAL };
        if after(self.start, at) - after(self.start, self.whole) >= shortest {
            self.mean = area(&self.watts, self.whole, at) / (at - self.whole);
            self.whole = at;
        }
        let value = if self.method == Method::Measured { (self.watts)(at) } else { self.mean };
        self.meter.sample(after(self.start, at), Some(&reading(value, self.method)));
        self.sampled = at;
    }

    /// Samples about once a second, ten times as often while something is computed if that helps, and at the ends of
    /// each request, as the daemon does.
    fn run(&mut self, seconds: f64) {
        let mut tick = 0.0;
        let mut jitter = (1..).map(|n: u32| f64::from(n * 7919 % 200) * 0.001 - 0.1);
        let mut edges = self.requests.clone().into_iter().peekable();
        while tick <= seconds {
            while let Some((begin, end)) = edges.next_if(|(begin, _)| *begin < tick) {
                // Just before the power steps.
                self.sample(begin - 1e-6);
                let mark = self.meter.begin();
                let (mut within, step) =
                    if self.method == Method::Measured { (begin + 0.1, 0.1) } else { (tick, 1.0) };
                while within < end {
                    self.sample(within);
                    within += step;
                }
                self.finish(mark, end);
                while tick < end {
                    tick += 1.0;
                }
            }
            self.sample(tick);
            tick += 1.0 + jitter.next().expect("endless");
        }
    }

    fn finish(&mut self, mark: EnergyMark, end: f64) {
        if self.meter.settle_computing(after(self.start, end)) {
            self.sampled = end;
        } else {
            self.sample(end);
        }
        self.costs.push(self.meter.cost(mark, 1.0, 10));
        self.meter.end();
    }

    fn total(&self) -> f64 {
        self.meter.joules().expect("power was read")
    }

    fn exact(&self) -> f64 {
        area(&self.watts, 0.0, self.sampled)
    }
}

fn is_near(reported: f64, exact: f64) -> bool {
    (reported / exact - 1.0).abs() < 0.01
}

const ALL: [Method; 3] = [Method::Measured, Method::Derived, Method::Estimated];

/// Twenty requests of some length, one every 17 s.
fn requests(seconds: f64) -> Vec<(f64, f64)> {
    (0..20).map(|n| (12.3 + 17.17 * f64::from(n), 12.3 + 17.17 * f64::from(n) + seconds)).collect()
}

/// 4 W, and 8.5 W while a request is computed.
fn steps(requests: &[(f64, f64)]) -> impl Fn(f64) -> f64 + use<> {
    let requests = requests.to_owned();
    move |at| {
        let is_busy = requests.iter().any(|(begin, end)| (*begin..*end).contains(&at));
        if is_busy { 8.5 } else { 4.0 }
    }
}

#[test]
fn steps_of_requests_long_and_short_are_right_within_one_percent_in_all_and_for_each() {
    for method in ALL {
        for seconds in [0.25, 0.7, 2.4, 9.9] {
            let requests = requests(seconds);
            let mut device = Device::new(method, steps(&requests));
            device.requests = requests;
            device.run(400.0);
            assert!(is_near(device.total(), device.exact()), "{method:?} {seconds} {}", device.total());
            assert_eq!(device.costs.len(), 20);
            for cost in device.costs.iter().map(|cost| cost.as_ref().expect("longer than the sensor's pace"))
            {
                assert!(is_near(cost.joules, 8.5 * seconds), "{method:?} {seconds} {cost:?}");
                assert_eq!((cost.method, cost.joules_per_token), (method, Some(cost.joules / 10.0)));
            }
        }
    }
}

#[test]
fn an_answer_shorter_than_the_pace_of_a_mean_has_no_energy_of_its_own_and_the_total_is_right() {
    for (method, seconds) in [(Method::Derived, 0.005), (Method::Estimated, 0.06)] {
        let all = requests(seconds);
        let mut device = Device::new(method, steps(&all));
        device.requests = all;
        device.run(400.0);
        // Where a sample fell just before it, it ends when the next mean does, and is known after all.
        let known: Vec<_> = device.costs.iter().flatten().collect();
        assert!(known.len() <= 5 && device.costs.len() == 20, "{method:?} {known:?}");
        assert!(known.iter().all(|cost| is_near(cost.joules, 8.5 * seconds)), "{method:?} {known:?}");
        assert!(is_near(device.total(), device.exact()), "{method:?} {}", device.total());
    }
}

/// Nothing is read while such a one is computed.
#[test]
fn an_answer_shorter_than_the_sampling_costs_what_was_read_during_a_longer_one() {
    let mut all = requests(0.06);
    all[3].1 += 5.0;
    let mut device = Device::new(Method::Measured, steps(&all));
    device.requests = all;
    device.run(400.0);
    assert_eq!(device.costs[..3], [None, None, None]);
    for cost in &device.costs[4..] {
        let joules = cost.as_ref().expect("a longer one was measured").joules;
        assert!(is_near(joules, 8.5 * 0.06), "{joules}");
    }
    assert!(is_near(device.total(), device.exact()), "{}", device.total());
}

#[test]
fn what_is_read_after_computing_ended_is_not_what_it_cost() {
    let (start, mut meter) = (Instant::now(), Meter::default());
    let measured = |watts| reading(watts, Method::Measured);
    meter.sample(start, Some(&measured(4.0)));
    let mark = meter.begin();
    meter.sample(after(start, 0.3), Some(&measured(9.0)));
    assert!(meter.settle_computing(after(start, 0.4)));
    let cost = meter.cost(mark, 1.0, 3).expect("read while it was computed");
    meter.end();
    assert!((cost.joules - 3.6).abs() < 1e-9, "{cost:?}");
    meter.sample(after(start, 1.4), Some(&measured(4.0)));
    assert!((meter.joules().expect("known") - 7.6).abs() < 1e-9);
    let mut counted = Meter::default();
    counted.sample(start, Some(&reading(4.0, Method::Derived)));
    assert!(!counted.settle_computing(after(start, 1.0)), "a counter is to be read once more");
    assert!(!Meter::default().settle_computing(start), "nothing was ever read");
}

#[test]
fn requests_and_idling_together_are_the_total() {
    for method in ALL {
        let requests = requests(2.4);
        let mut device = Device::new(method, steps(&requests));
        device.requests = requests;
        device.run(400.0);
        let computed: f64 = device.costs.iter().flatten().map(|cost| cost.joules).sum();
        let idling = 4.0 * (device.sampled - 20.0 * 2.4);
        assert!(is_near(device.total() - computed, idling), "{method:?}");
        let above: f64 = device.costs[1..].iter().flatten().filter_map(|cost| cost.joules_above_idle).sum();
        assert!(is_near(above, 19.0 * 4.5 * 2.4), "{method:?} {above}");
    }
}

#[test]
fn ramps_and_waves_are_right_within_one_percent() {
    let traces: [fn(f64) -> f64; 3] = [
        |at| 2.0 + at * 0.02,
        |at| 9.0 - at * 0.015,
        |at| 5.0 + 3.0 * (at * std::f64::consts::TAU / 30.0).sin(),
    ];
    for method in ALL {
        for (n, trace) in traces.into_iter().enumerate() {
            let mut device = Device::new(method, trace);
            device.run(400.0);
            let (reported, exact) = (device.total(), device.exact());
            assert!((reported / exact - 1.0).abs() < 0.002, "{method:?} {n}: {reported} for {exact}");
        }
    }
}

/// Where nobody says when the power steps, a sample a second catches the steps of an hour on both sides alike.
#[test]
fn an_hour_of_bursts_that_nobody_announced_is_right_within_one_percent() {
    for method in ALL {
        let mut device = Device::new(method, |at: f64| if at % 7.3 < 2.2 { 8.0 } else { 4.0 });
        device.run(3600.0);
        assert!(is_near(device.total(), device.exact()), "{method:?} {}", device.total());
    }
}

#[test]
fn requests_one_after_the_other_faster_than_a_counter_steps_lose_nothing() {
    let (start, mut meter) = (Instant::now(), Meter::default());
    let trace = |at: f64| if (20.0..40.0).contains(&at) { 10.0 } else { 4.0 };
    let (mut whole, mut value, mut costs) = (0.0, 4.0, 0.0);
    meter.sample(start, None);
    let mut mark = None;
    for n in 1..=6000u32 {
        let at = f64::from(n) * 0.01;
        // The counter tells the same again within 100 ms.
        if at - whole >= 0.1 {
            value = area(trace, whole, at) / (at - whole);
            whole = at;
        }
        meter.sample(after(start, at), Some(&reading(value, Method::Derived)));
        if let Some(mark) = mark.take() {
            costs += meter.cost(mark, 1.0, 1).expect("known").joules;
            meter.end();
        }
        mark = (2000..4000).contains(&n).then(|| meter.begin());
    }
    let total = meter.joules().expect("power was read");
    assert!(is_near(total, 20.0 * 10.0 + 40.0 * 4.0), "{total}");
    assert!(is_near(costs, 20.0 * 10.0), "{costs}");
}

#[test]
fn the_total_never_falls_when_a_mean_turns_out_lower_than_the_one_that_stood_for_it() {
    let (start, mut meter) = (Instant::now(), Meter::default());
    let (mut reported, mut at) = (0.0, 0.0);
    meter.sample(start, Some(&reading(9.0, Method::Derived)));
    for watts in [9.0, 9.0, 0.5, 0.5, 9.0, 0.5, 0.5] {
        at += 0.06;
        meter.sample(after(start, at), Some(&reading(watts, Method::Derived)));
        let now = meter.joules().expect("power was read");
        assert!(now >= reported, "{now} after {reported}");
        reported = now;
    }
}

#[test]
fn time_without_readings_counts_nothing_and_what_ran_in_it_has_no_energy() {
    for method in ALL {
        let (start, mut meter) = (Instant::now(), Meter::default());
        let watts = Some(reading(5.0, method));
        (0..=10).for_each(|s| meter.sample(after(start, f64::from(s)), watts.as_ref()));
        let mark = meter.begin();
        (11..=20).for_each(|s| meter.sample(after(start, f64::from(s)), None));
        assert_eq!(meter.cost(mark, 1.0, 1), None);
        (21..=30).for_each(|s| meter.sample(after(start, f64::from(s)), watts.as_ref()));
        assert_eq!(meter.cost(mark, 1.0, 1), None);
        meter.end();
        assert_eq!(meter.joules(), Some(100.0), "{method:?}");
        let mark = meter.begin();
        meter.sample(after(start, 32.0), watts.as_ref());
        assert_eq!(meter.cost(mark, 1.0, 1).expect("known again").joules, 10.0);
    }
}

#[test]
fn a_long_pause_of_the_sampling_is_not_filled_with_the_reading_after_it() {
    let total = |method, pause| {
        let (start, mut meter) = (Instant::now(), Meter::default());
        meter.sample(start, Some(&reading(5.0, method)));
        meter.sample(after(start, 1.0), Some(&reading(5.0, method)));
        meter.sample(after(start, 1.0 + pause), Some(&reading(7.0, method)));
        meter.joules().expect("power was read")
    };
    assert_eq!(total(Method::Measured, 10.0), 5.0 + 60.0);
    assert_eq!(total(Method::Measured, 10.1), 5.0);
    assert_eq!(total(Method::Derived, 60.0), 5.0 + 420.0);
    assert_eq!(total(Method::Derived, 3600.0), 5.0);
}

#[test]
fn another_sensor_begins_anew_and_spoils_neither_the_sum_nor_the_idle_power() {
    let (start, mut meter) = (Instant::now(), Meter::default());
    let other = |value| Reading { source: "/sys/q".into(), ..reading(value, Method::Derived) };
    (0..=60).for_each(|s| meter.sample(after(start, f64::from(s)), Some(&reading(4.0, Method::Measured))));
    assert_eq!(meter.idle_watts(), Some(4.0));
    let mark = meter.begin();
    meter.sample(after(start, 61.0), Some(&other(900.0)));
    assert_eq!(meter.joules(), Some(240.0), "the second of the change is not known");
    assert_eq!((meter.cost(mark, 1.0, 1), meter.idle_watts()), (None, None));
    meter.end();
    meter.sample(after(start, 62.0), Some(&other(30.0)));
    (63..=75).for_each(|s| meter.sample(after(start, f64::from(s)), Some(&other(2.0))));
    assert_eq!(meter.joules(), Some(240.0 + 30.0 + 13.0 * 2.0));
    assert_eq!(meter.idle_watts(), Some(2.0));
}

#[test]
fn the_idle_power_is_learned_only_while_nothing_is_computed() {
    for method in ALL {
        let requests = requests(9.9);
        let mut device = Device::new(method, steps(&requests));
        device.requests = requests;
        device.run(400.0);
        let idle = device.meter.idle_watts().expect("some seconds between requests");
        assert!((idle - 4.0).abs() < 1e-6, "{method:?} {idle}");
    }
}

#[test]
fn a_device_that_is_never_idle_has_the_configured_idle_power_of_an_estimate_only() {
    let (start, mut meter) = (Instant::now(), Meter::default());
    meter.sample(start, Some(&reading(7.0, Method::Estimated)));
    let mark = meter.begin();
    (1..=60).for_each(|s| meter.sample(after(start, f64::from(s)), Some(&reading(7.0, Method::Estimated))));
    assert_eq!(meter.cost(mark, 1.0, 1).expect("known").joules_above_idle, None);
    meter.set_idle(Some(3.0));
    assert_eq!(meter.cost(mark, 1.0, 1).expect("known").joules_above_idle, Some(4.0 * 60.0));
    meter.sample(after(start, 61.0), Some(&reading(7.0, Method::Measured)));
    assert_eq!(meter.idle_watts(), None, "what is measured needs no word of the owner's");
}

#[test]
fn a_share_of_the_time_is_charged_that_share() {
    let (start, mut meter) = (Instant::now(), Meter::default());
    meter.sample(start, Some(&reading(8.0, Method::Measured)));
    let (long, short) = (meter.begin(), meter.begin());
    meter.sample(after(start, 10.0), Some(&reading(8.0, Method::Measured)));
    let joules = |mark, share| meter.cost(mark, share, 0).expect("known").joules;
    assert_eq!((joules(long, 0.75), joules(short, 0.25)), (60.0, 20.0));
    assert_eq!(meter.cost(long, 1.0, 0).expect("known").joules_per_token, None);
}

#[test]
fn without_a_reading_there_is_no_energy() {
    let (start, mut meter) = (Instant::now(), Meter::default());
    let mark = meter.begin();
    assert_eq!((meter.joules(), meter.cost(mark, 1.0, 1)), (None, None));
    meter.sample(start, None);
    meter.sample(after(start, 1.0), None);
    assert_eq!((meter.joules(), meter.cost(mark, 1.0, 1), meter.idle_watts()), (None, None, None));
}

#[test]
fn a_sample_out_of_order_changes_nothing() {
    let (start, mut meter) = (Instant::now(), Meter::default());
    meter.sample(after(start, 1.0), Some(&reading(5.0, Method::Measured)));
    meter.sample(start, Some(&reading(500.0, Method::Measured)));
    meter.sample(after(start, 2.0), Some(&reading(5.0, Method::Measured)));
    assert_eq!(meter.joules(), Some(5.0));
    assert!(meter.is_fresh(after(start, 2.001)) && !meter.is_fresh(after(start, 2.5)));
}
