//! Whatever a disk makes of the history: it is read or refused, and what is read can be written, read again and reported in
//! every form.

#![no_main]

use bitnetd::telemetry::history::format::{encode, parse, parse_unchecked};
use bitnetd::telemetry::history::{ReportForm, ReportRequest, ReportSubject, render, time_of};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // A right checksum is not found by chance.
    let _ = parse(bytes);
    let Ok(steps) = parse_unchecked(bytes) else { return };
    let again = parse(&encode(&steps));
    assert_eq!(again.as_ref(), Ok(&steps));
    let now = time_of(steps.minutes.steps().back().map_or(0, |step| step.minute));
    let subject = ReportSubject { device: "cellar", model: "<model>" };
    for hours in [1, 24, 720] {
        for form in [ReportForm::Html, ReportForm::Text, ReportForm::Json, ReportForm::Csv] {
            let request = ReportRequest { hours, form, price: Some(0.3) };
            let report = render(&steps, subject, &request, now, &jiff::tz::TimeZone::UTC);
            assert!(
                std::str::from_utf8(&report)
                    .is_ok_and(|text| !text.contains("<model>") || form != ReportForm::Html)
            );
        }
    }
});
