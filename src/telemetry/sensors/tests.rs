//! Each recorded board, with every figure it gives and where that comes from; see tests/data/boards/README.md.

use super::rpi_firmware::tests::{Firmware, RAILS, mailbox};
use super::*;
use crate::protocol::Method;
use std::path::PathBuf;
use std::time::Duration;

fn board(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/boards").join(name)
}

/// The second reading of two, a second apart.
fn second(mut sensors: Sensors) -> Snapshot {
    let now = Instant::now();
    sensors.read(now);
    sensors.read(now + Duration::from_secs(1))
}

fn read(name: &str) -> Snapshot {
    second(Sensors::new(&board(name)))
}

/// A board with a firmware that answers so to `get_throttled` and `pmic_read_adc`.
fn with_firmware(name: &str, flags: &'static str, rails: &'static str) -> Sensors {
    let (mailbox, _) = mailbox(Firmware::Says(flags, rails));
    Sensors::with(Root::new(&board(name)), MailboxAccess::Open(mailbox))
}

/// Every reading of a snapshot in one line each: value, unit, method, scope, source.
fn readings(snapshot: &Snapshot) -> Vec<String> {
    let one = |name: &str, reading: &Option<Reading>| {
        let Reading { value, unit, method, source, scope } = reading.as_ref()?;
        let source = source.replace("/sys/class/", "");
        Some(format!("{name} {value:.3} {unit} {method:?} {scope}: {source}"))
    };
    let under_voltage = snapshot.thermal.under_voltage.as_ref().map(|flag| {
        let source = flag.source.replace("/sys/class/", "");
        format!("under-voltage {} {:?} {}: {source}", flag.value, flag.method, flag.scope)
    });
    let all = [
        one("power", &snapshot.power),
        one("cpu", &snapshot.thermal.cpu),
        one("fan", &snapshot.thermal.fan),
        one("clock", &snapshot.cpu.frequency),
        under_voltage,
    ];
    all.into_iter().flatten().collect()
}

const POLICY: &str = "/sys/devices/system/cpu/cpufreq/policy";

#[test]
fn a_pi_5_with_its_firmware_has_the_power_of_its_rails() {
    let snapshot = second(with_firmware("pi5", "throttled=0xE0008", RAILS));
    let expected = [
        "power 7.240 W Measured pmic_rails: /dev/vcio_gencmd pmic_read_adc",
        "cpu 56.200 °C Measured cpu: thermal/thermal_zone0/temp (cpu-thermal)",
        "fan 3054.000 1/min Measured fan: hwmon/hwmon2/fan1_input (pwmfan)",
        &format!("clock 1600.000 MHz Measured cpu: {POLICY}0/scaling_cur_freq"),
        "under-voltage false Measured board: hwmon/hwmon3/in0_lcrit_alarm (rpi_volt)",
    ];
    assert_eq!(readings(&snapshot), expected);
    let throttling = snapshot.thermal.throttling.expect("flags");
    assert!(throttling.now.soft_temperature_limit && !throttling.now.throttled, "{throttling:?}");
    assert!(throttling.since_boot.throttled && throttling.since_boot.frequency_capped, "{throttling:?}");
    assert_eq!((throttling.method, throttling.scope.as_str()), (Method::Measured, "board"));
    assert_eq!(throttling.source, "/dev/vcio_gencmd get_throttled");
    assert_eq!(snapshot.cpu.frequency_max_mhz, Some(2400.0));
    assert_eq!(
        (snapshot.cpu.threads, snapshot.cpu.load_1m, snapshot.cpu.pressure),
        (Some(6), Some(3.92), None)
    );
    assert_eq!(snapshot.memory.process_bytes, Some(1_250_304 << 10));
    assert_eq!(
        (snapshot.memory.group_bytes, snapshot.memory.pressure),
        (None, None),
        "both are off as shipped"
    );
    assert!(!snapshot.memory.memory_limit_enforced);
}

#[test]
fn a_pi_5_without_access_to_its_firmware_has_no_power_and_no_flags() {
    let snapshot = read("pi5");
    assert_eq!((&snapshot.power, &snapshot.thermal.throttling), (&None, &None));
    assert_eq!(readings(&snapshot).len(), 4);
}

#[test]
fn a_pi_4_has_flags_and_no_current_to_measure() {
    let snapshot = second(with_firmware("pi4", "throttled=0x0", ""));
    let expected = [
        "cpu 61.341 °C Measured cpu: hwmon/hwmon0/temp1_input (cpu_thermal)",
        &format!("clock 1500.000 MHz Measured cpu: {POLICY}0/scaling_cur_freq"),
        "under-voltage false Measured board: hwmon/hwmon1/in0_lcrit_alarm (rpi_volt)",
    ];
    assert_eq!(readings(&snapshot), expected);
    let throttling = snapshot.thermal.throttling.expect("flags");
    assert!(!throttling.now.any() && !throttling.since_boot.any());
    assert_eq!(snapshot.memory.group_bytes, Some(738_197_504));
    assert_eq!((snapshot.memory.group_peak_bytes, snapshot.memory.oom_kills), (Some(790_626_304), Some(0)));
    assert!(snapshot.memory.memory_limit_enforced);
}

#[test]
fn a_pi_zero_2_w_on_a_weak_supply_has_under_voltage() {
    let expected = [
        "cpu 47.774 °C Measured cpu: thermal/thermal_zone0/temp (cpu-thermal)",
        &format!("clock 600.000 MHz Measured cpu: {POLICY}0/scaling_cur_freq"),
        "under-voltage true Measured board: hwmon/hwmon1/in0_lcrit_alarm (rpi_volt)",
    ];
    let snapshot = read("zero2");
    assert_eq!(readings(&snapshot), expected);
    assert_eq!(snapshot.cpu.frequency_max_mhz, Some(1000.0));
    assert_eq!(snapshot.memory.host_total_bytes, Some(437_344 << 10));
}

#[test]
fn a_monitor_chip_has_the_scope_as_wired() {
    for (name, power, temperature) in [
        ("ina219", "4.860 W Measured as wired: hwmon/hwmon2/power1_input (ina219)", "48.312"),
        ("ina226", "2.100 W Measured as wired: hwmon/hwmon0/power1_input (ina226)", "44.008"),
        ("ina260", "6.670 W Measured as wired: hwmon/hwmon4/power1_input (ina260)", "61.600"),
        ("ina3221-hat", "4.141 W Measured as wired: hwmon/hwmon1/in2_input, curr2_input (ina3221)", "52.616"),
    ] {
        let temperature =
            format!("cpu {temperature} °C Measured cpu: thermal/thermal_zone0/temp (cpu-thermal)");
        let message = readings(&read(name));
        assert_eq!(message[..2], [format!("power {power}"), temperature], "{name}");
        assert!(message[2..].iter().all(|line| line.starts_with("under-voltage false")), "{message:?}");
    }
    let memory = read("ina219").memory;
    assert_eq!(
        (memory.group_bytes, memory.group_peak_bytes, memory.oom_kills),
        (Some(288 << 20), None, Some(2))
    );
}

#[test]
fn a_jetson_has_the_power_of_its_module_input() {
    let expected = [
        "power 7.400 W Measured module: hwmon/hwmon0/in1_input, curr1_input (ina3221 VDD_IN)",
        "cpu 51.312 °C Measured cpu: thermal/thermal_zone0/temp (cpu-thermal)",
        &format!("clock 1510.400 MHz Measured cpu: {POLICY}4/scaling_cur_freq"),
    ];
    assert_eq!(readings(&read("jetson")), expected);
    let expected = [
        "power 4.514 W Measured module: hwmon/hwmon3/in2_input, curr2_input (ina3221 VDD_IN)",
        "cpu 41.500 °C Measured cpu: thermal/thermal_zone1/temp (CPU-therm)",
    ];
    assert_eq!(readings(&read("jetson-nvidia")), expected);
}

#[test]
fn lines_of_which_none_is_the_boards_input_are_no_power_and_a_reason() {
    let mut sensors = Sensors::new(&board("rails-unnamed"));
    assert_eq!(sensors.read(Instant::now()).power, None);
    let missing = sensors.missing(Instant::now());
    assert!(missing[0].contains("hwmon0 (ina3221) measures several lines"), "{missing:?}");
}

#[test]
fn a_ups_board_on_battery_has_the_power_of_the_battery() {
    let expected = [
        "power 5.397 W Measured board: power_supply/bq27441-0/voltage_now, current_now",
        "cpu 55.017 °C Measured cpu: thermal/thermal_zone0/temp (cpu-thermal)",
        "fan 0.000 1/min Measured fan: hwmon/hwmon2/fan1_input (cooling_fan)",
        "under-voltage false Measured board: hwmon/hwmon1/in0_lcrit_alarm (rpi_volt)",
    ];
    assert_eq!(readings(&read("ups-hat")), expected);
}

#[test]
fn a_laptop_on_battery_has_the_power_of_the_board() {
    let expected = [
        "power 14.250 W Measured board: power_supply/BAT0/voltage_now, current_now",
        "cpu 52.125 °C Measured cpu: hwmon/hwmon0/temp1_input (k10temp)",
    ];
    let snapshot = read("laptop-battery");
    assert_eq!(readings(&snapshot), expected);
    assert_eq!(snapshot.memory.oom_kills, Some(1));
}

#[test]
fn an_x86_machine_has_package_power_load_and_pressure() {
    let (mut sensors, start) = (Sensors::new(&board("x86-rapl")), Instant::now());
    let first = sensors.read(start);
    assert_eq!((first.power, first.cpu.host_percent), (None, None), "one reading has no mean");
    let pressure = first.cpu.pressure.expect("psi is on");
    assert_eq!((pressure.some_10s, pressure.some_60s, pressure.full_10s), (12.5, 3.01, Some(0.0)));
    assert_eq!(first.memory.pressure.map(|pressure| pressure.some_60s), Some(0.25));
    sensors.root = Root::new(&board("x86-rapl-later"));
    let later = sensors.read(start + Duration::from_secs(1));
    let expected = [
        "power 15.000 W Derived package: powercap/intel-rapl:0/energy_uj",
        &format!("clock 2400.000 MHz Measured cpu: {POLICY}0/scaling_cur_freq"),
    ];
    assert_eq!(readings(&later), expected);
    assert_eq!((later.cpu.host_percent, later.cpu.frequency_max_mhz), (Some(50.0), Some(3800.0)));
}

#[test]
fn two_processors_are_one_power_and_the_first_ones_temperature() {
    let (mut sensors, start) = (Sensors::new(&board("x86-two-packages")), Instant::now());
    sensors.read(start);
    let temperature = "cpu 48.000 °C Measured cpu: hwmon/hwmon0/temp1_input (coretemp)";
    assert_eq!(readings(&sensors.read(start)), [temperature]);
    sensors.root = Root::new(&board("x86-two-packages-later"));
    let both = "powercap/intel-rapl:0/energy_uj, powercap/intel-rapl:1/energy_uj";
    let power = format!("power 75.000 W Derived package: {both}");
    assert_eq!(readings(&sensors.read(start + Duration::from_secs(2))), [power]);
}

#[test]
fn a_board_without_sensors_has_no_readings() {
    assert_eq!(read("none"), Snapshot::default());
    assert_eq!(read("no such board"), Snapshot::default());
    assert_eq!(Sensors::new(&board("none")).found(Instant::now()), []);
    let watts = Some(BoardWatts { idle: 3.0, full: 8.0 });
    assert_eq!(
        second(Sensors::new(&board("none")).estimating(watts)).power,
        None,
        "an estimate needs the load"
    );
}

#[test]
fn malformed_files_are_as_good_as_missing_ones() {
    // The battery says that it is discharging, and no more.
    assert_eq!(read("broken"), Snapshot { is_on_battery: true, ..Snapshot::default() });
    let watts = Some(BoardWatts { idle: 3.0, full: 8.0 });
    let mut sensors = Sensors::new(&board("broken")).estimating(watts);
    assert_eq!((sensors.read(Instant::now()).power, sensors.read(Instant::now()).power), (None, None));
}

#[test]
fn a_firmware_that_talks_nonsense_leaves_the_rest_as_it_is() {
    let sound = read("pi5");
    for (flags, rails) in [("", ""), ("throttled=x", "VDD_CORE_A current(7)=1.0"), ("\u{0}", "\n\n")] {
        assert_eq!(second(with_firmware("pi5", flags, rails)), sound, "{flags} {rails}");
    }
}

#[test]
fn what_was_found_is_listed_in_the_order_of_preference() {
    let list = |mut sensors: Sensors| -> Vec<_> {
        let found = sensors.found(Instant::now()).into_iter();
        found.map(|f| format!("{} {} {:?}", f.name, f.value.unwrap_or("later".into()), f.method)).collect()
    };
    let expected = [
        "power later Derived",
        "temperature 63.0 °C Measured",
        "temperature 63.0 °C Measured",
        "frequency 3100 MHz Measured",
        "load later Measured",
        "memory later Measured",
        "pressure later Measured",
        "pressure later Measured",
    ];
    assert_eq!(list(Sensors::new(&board("x86-rapl"))), expected);
    let watts = Some(BoardWatts { idle: 3.0, full: 8.0 });
    let expected = [
        "power 7.24 W Measured",
        "power later Estimated",
        "temperature 56.2 °C Measured",
        "temperature 56.2 °C Measured",
        "throttling now throttled, since boot under-voltage, throttled Measured",
        "under-voltage no Measured",
        "fan 3054 1/min Measured",
        "frequency 1600 MHz Measured",
        "load later Measured",
        "memory later Measured",
    ];
    assert_eq!(list(with_firmware("pi5", "throttled=0x50004", RAILS).estimating(watts)), expected);
}

#[test]
fn each_missing_reading_has_a_reason_and_a_way_out_on_one_line() {
    let now = Instant::now();
    let missing = |name: &str| Sensors::new(&board(name)).missing(now);
    let starts = |missing: &[String]| -> Vec<String> {
        missing.iter().map(|line| line.split(':').next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(starts(&missing("pi5")), ["firmware", "pressure", "memory"]);
    assert!(missing("pi5")[0].contains("systemd/bitnetd-pi.conf"), "{:?}", missing("pi5"));
    assert_eq!(starts(&missing("none")), ["power", "temperature", "load", "pressure", "memory"]);
    assert_eq!(starts(&with_firmware("pi4", "throttled=0x0", "").missing(now)), ["power", "pressure"]);
    assert_eq!(starts(&with_firmware("pi5", "throttled=0x0", RAILS).missing(now)), ["pressure", "memory"]);
    assert!(missing("broken")[0].contains("intel-rapl:0/energy_uj"), "{:?}", missing("broken"));
    let mut charging = Sensors::new(&board("x86-rapl"));
    charging.root = Root::new(&board("none"));
    assert!(charging.missing(now)[0].contains("only the battery"), "{:?}", charging.missing(now));
    let silent = with_firmware("pi5", "", "").missing(now);
    assert!(silent[0].starts_with("firmware: /dev/vcio_gencmd get_throttled does not answer"), "{silent:?}");
    let refused = MailboxAccess::Refused("/dev/vcio_gencmd", std::io::ErrorKind::PermissionDenied.into());
    let message = Sensors::with(Root::new(&board("pi4")), refused).missing(now);
    assert!(message[0].starts_with("firmware: /dev/vcio_gencmd: permission denied"), "{message:?}");
    assert!(!message[0].contains("udev"), "the narrower device is the group's: {message:?}");
    let rule = "KERNEL==\"vcio\", GROUP=\"video\", MODE=\"0660\" into /etc/udev/rules.d/99-vcio.rules";
    let refused = MailboxAccess::Refused("/dev/vcio", std::io::ErrorKind::PermissionDenied.into());
    let roots = Sensors::with(Root::new(&board("pi4")), refused).missing(now);
    assert!(roots[0].contains(rule), "{roots:?}");
    for line in [missing("pi5"), missing("none"), missing("broken"), message, roots].concat() {
        assert!(!line.contains('\n') && !line.contains("  "), "{line}");
    }
}

/// The memory of a process has nothing at address 0, and reading it there is the kernel's EIO: what the driver of a chip
/// says whose bus hangs.
#[test]
fn a_chip_whose_bus_fails_is_asked_again_after_a_minute_and_others_are_read_meanwhile() {
    let root = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
    let (power, fan) =
        (root.path().join("sys/class/hwmon/hwmon0"), root.path().join("sys/class/hwmon/hwmon1"));
    let write = |path: PathBuf, text: &str| std::fs::write(path, text).expect("a temporary file");
    for (folder, name, file, value) in
        [(&power, "ina219", "power1_input", "5000000"), (&fan, "pwmfan", "fan1_input", "900")]
    {
        std::fs::create_dir_all(folder).expect("a temporary folder");
        write(folder.join("name"), name);
        write(folder.join(file), value);
    }
    let (mut sensors, now) = (Sensors::new(root.path()), Instant::now());
    let mut watts = |second| {
        let snapshot = sensors.read(now + Duration::from_secs(second));
        assert_eq!(snapshot.thermal.fan.map(|fan| fan.value), Some(900.0));
        snapshot.power.map(|power| power.value)
    };
    let file = power.join("power1_input");
    assert_eq!(watts(0), Some(5.0));
    std::fs::remove_file(&file).expect("there");
    std::os::unix::fs::symlink("/proc/self/mem", &file).expect("a new name");
    assert_eq!(watts(1), None);
    std::fs::remove_file(&file).expect("there");
    write(file, "6000000");
    assert_eq!([2, 30, 60, 61].map(watts), [None, None, None, Some(6.0)]);
}

#[test]
fn the_live_machine_can_be_read() {
    let (mut sensors, now) = (Sensors::new(Path::new("/")), Instant::now());
    assert_eq!(sensors.read(now).cpu.host_percent, None, "one reading has no load");
    let memory = sensors.read(now).memory;
    assert!(memory.process_bytes > Some(100 << 10), "{memory:?}");
    assert!(memory.host_available_bytes <= memory.host_total_bytes, "{memory:?}");
}

/// Time that this thread ran on a processor, in nanoseconds.
fn processor_time() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

#[test]
fn reading_everything_once_a_second_takes_less_than_half_a_percent_of_a_processor() {
    let (mut sensors, now, times) = (Sensors::new(Path::new("/")), Instant::now(), 1000);
    let Some(before) = processor_time() else { return };
    for time in 0..times {
        sensors.read(now + Duration::from_secs(time));
    }
    let each = Duration::from_nanos((processor_time().expect("told before") - before) / times);
    println!("{each:?} of processor time for each reading");
    assert!(each < Duration::from_millis(5), "{each:?}");
}
