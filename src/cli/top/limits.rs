//! The row of what was refused. Pure, as the other rows are.

use super::report_view::ReportView;

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
    use crate::protocol::{ClientInterface, GuardReason};
    use crate::telemetry::{
        ReloadOutcome, RemoteCommand, SecurityEvent, SecurityEventKind, Telemetry, TokenFailure,
    };
    use std::time::SystemTime;

    fn shown(telemetry: &Telemetry) -> Option<String> {
        let report = serde_json::to_value(telemetry.report(SystemTime::UNIX_EPOCH)).expect("plain data");
        security(&ReportView(&report))
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
