//! Commands to the daemon other than requests, such as those of Home Assistant's controls. Each is executed at once
//! and logged. Deliberately knows no transport.

use super::queue::Queue;
use crate::telemetry::{RemoteCommand, SecurityEvent, Telemetry};
use crate::transport::Command;
use log::{debug, info};
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};

/// Executes commands. It never returns, since the end of a background task ends the daemon. `report_now` requests an
/// early report, so that a control shows its new state at once.
pub(super) async fn run_commands(
    mut asked: mpsc::Receiver<Command>,
    queue: Arc<Queue>,
    telemetry: Arc<Telemetry>,
    report_now: Arc<Notify>,
) {
    while let Some(control) = asked.recv().await {
        match control {
            Command::CancelRunning => {
                let count = queue.cancel_running();
                telemetry.security.record(&SecurityEvent::command(RemoteCommand::CancelRunning(count)));
                match count {
                    0 => debug!("nothing runs that could be cancelled"),
                    1 => info!("the running request was cancelled"),
                    count => info!("the {count} running requests were cancelled"),
                }
            }
            Command::Threads(threads) => {
                queue.worker.limit_threads(threads);
                telemetry.set_thread_limit(threads);
                report_now.notify_one();
                telemetry.security.record(&SecurityEvent::command(RemoteCommand::ThreadLimit(threads)));
                info!("at most {threads} threads compute from the next request on, until the next start");
            }
        }
    }
    std::future::pending().await
}
