//! The rows of what the governor allows and of what was refused. Pure, as the other rows are.

use super::report_view::ReportView;

/// What the governor lets the daemon compute, and why; `None` where it is off.
pub(super) fn governor(view: &ReportView<'_>) -> Option<String> {
    let (threads, percent) = (view.number("/governor/threads")?, view.number("/governor/percent")?);
    let reason = match view.text("/governor/reason")? {
        "none" => "nothing limits it".to_owned(),
        reason => format!("limited by {}", reason.replace('_', " ")),
    };
    let target = view.number("/governor/target_c").map(|target| format!(", target {target:.0} °C"));
    let limit = view.number("/governor/limit_watts").map(|limit| format!(", limit {limit} W"));
    let (target, limit) = (target.unwrap_or_default(), limit.unwrap_or_default());
    Some(format!("threads: {threads}, {percent} % of the time; {reason}{target}{limit}"))
}

/// What the guard refused, tokens that were none, commands from others and reloads; `None` before the first.
pub(super) fn security(view: &ReportView<'_>) -> Option<String> {
    let counted = |text: &str, path: &str| match view.count(path) {
        0 => None,
        count => Some(format!("{text}: {count}")),
    };
    let refused: Vec<String> = view
        .0
        .pointer("/security/refused")
        .and_then(|refused| refused.as_object())
        .into_iter()
        .flatten()
        .filter(|(_, count)| count.as_u64() != Some(0))
        .map(|(reason, count)| format!("{} {count}", reason.replace('_', " ")))
        .collect();
    let refused = (!refused.is_empty()).then(|| format!("refused: {}", refused.join(", ")));
    let reloads = counted("reloads", "/security/reloads").map(|reloads| {
        counted("with an error", "/security/reloads_refused")
            .map_or(reloads.clone(), |refused| format!("{reloads} ({refused})"))
    });
    let parts = [
        refused,
        counted("failed tokens", "/security/failed_tokens"),
        counted("commands", "/security/commands"),
        reloads,
    ];
    let shown = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
    (!shown.is_empty()).then_some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ClientInterface, GovernorReason, GovernorState, GuardReason};
    use crate::telemetry::{
        ReloadOutcome, RemoteCommand, SecurityEvent, SecurityEventKind, Telemetry, TokenFailure,
    };
    use std::time::SystemTime;

    fn shown(telemetry: &Telemetry) -> Option<String> {
        let report = serde_json::to_value(telemetry.report(SystemTime::UNIX_EPOCH)).expect("plain data");
        security(&ReportView(&report))
    }

    #[test]
    fn the_governor_has_a_row_where_it_is_on() {
        let shown = |state: Option<GovernorState>| {
            let telemetry = Telemetry::new(0);
            telemetry.set_governor(state);
            let report = serde_json::to_value(telemetry.report(SystemTime::UNIX_EPOCH)).expect("plain data");
            governor(&ReportView(&report))
        };
        assert_eq!(shown(None), None);
        let state = GovernorState {
            threads: 2,
            percent: 80,
            reason: GovernorReason::QuietHours,
            target_c: Some(70.0),
            limit_watts: None,
        };
        assert_eq!(
            shown(Some(state)).as_deref(),
            Some("threads: 2, 80 % of the time; limited by quiet hours, target 70 °C")
        );
        let unlimited = GovernorState { reason: GovernorReason::None, ..state };
        assert!(shown(Some(unlimited)).is_some_and(|row| row.contains("; nothing limits it, target 70 °C")));
        for reason in GovernorReason::ALL {
            assert_eq!(serde_json::to_value(reason).expect("a name"), reason.name());
        }
    }

    #[test]
    fn security_has_a_row_once_something_is_counted() {
        let telemetry = Telemetry::new(0);
        assert_eq!(shown(&telemetry), None);
        let event = |kind| SecurityEvent {
            kind,
            client: Some("a"),
            request_id: None,
            interface: Some(ClientInterface::Http),
            address: None,
        };
        let refused = |reason| event(SecurityEventKind::Refused { reason, filter_line: None });
        for reason in [GuardReason::PromptBytes, GuardReason::RateLimited, GuardReason::PromptBytes] {
            telemetry.security.record(&refused(reason));
        }
        assert_eq!(shown(&telemetry).as_deref(), Some("refused: rate limited 1, prompt bytes 2"));
        telemetry.security.record(&event(SecurityEventKind::FailedToken(TokenFailure::Wrong)));
        telemetry.security.record(&SecurityEvent::command(RemoteCommand::ThreadLimit(2)));
        telemetry.security.record(&SecurityEvent::reload(ReloadOutcome::Applied));
        telemetry.security.record(&SecurityEvent::reload(ReloadOutcome::Refused));
        assert_eq!(
            shown(&telemetry).as_deref(),
            Some(
                "refused: rate limited 1, prompt bytes 2; failed tokens: 1; commands: 1; \
                 reloads: 2 (with an error: 1)"
            )
        );
    }
}
