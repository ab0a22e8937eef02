//! What is asked of the daemon beside requests: each is done at once, and the log says so.

use super::queue::Queue;
use crate::telemetry::Telemetry;
use crate::transport::Control;
use log::{debug, info};
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};

/// Does what is asked, until nobody can ask any more and then for ever: this task is wanted as long as the daemon.
/// `hurry` asks for a report of what changed: whoever moved a slider shows what the reports say.
pub(super) async fn obey(
    mut asked: mpsc::Receiver<Control>,
    queue: Arc<Queue>,
    telemetry: Arc<Telemetry>,
    hurry: Arc<Notify>,
) {
    while let Some(control) = asked.recv().await {
        match control {
            Control::CancelRunning if queue.cancel_running() => info!("the running request was cancelled"),
            Control::CancelRunning => debug!("nothing runs that could be cancelled"),
            Control::Threads(threads) => {
                queue.limit_threads(threads);
                telemetry.set_thread_limit(threads);
                hurry.notify_one();
                info!("at most {threads} threads compute from the next request on, until the next start");
            }
        }
    }
    std::future::pending().await
}
