//! Which board has the memory for a model: the daemon's plan under its default budget. Deliberately loads no model.

use super::host;
use crate::config::Config;
use crate::daemon::{ClientMemory, MemoryBudget, MemoryPlan, ServedOverTcp};
use crate::engine::ModelFile;
use serde::Serialize;

/// What the memory plan says of a model on a board.
#[derive(Serialize)]
pub(super) struct BoardFit {
    /// `512 MB`, or `this machine`.
    pub name: String,
    /// The daemon's default: three quarters of the memory.
    pub budget: usize,
    pub fits: bool,
    /// Tokens of context within the budget; the smallest context where the model does not fit.
    pub context: usize,
    /// Requests that are answered at the same time.
    pub parallel: usize,
    /// Memory of the daemon with this model, in bytes.
    pub total: usize,
    /// What structured output takes besides where all of them have a grammar; `null` where the budget has no place for it.
    pub structured_output: Option<usize>,
}

impl BoardFit {
    /// The plan for a board with so many bytes of `memory`. Without a number of requests at the same time, `parallel`, there
    /// are as many as fit.
    pub fn new(file: &ModelFile, name: String, memory: usize, parallel: Option<usize>) -> Self {
        let footprint = file.footprint();
        let clients = ClientMemory::of(&Config::defaults(&host::host()), ServedOverTcp::default());
        let allowed = MemoryBudget { bytes: memory / 4 * 3, is_cgroup_limit: false };
        let planned = MemoryPlan::make(&footprint, file.shape().context, None, parallel, clients, allowed);
        let (fits, plan) = match planned {
            Ok(plan) => (true, plan),
            Err(refused) => (false, refused.plan),
        };
        let MemoryPlan { context, parallel, .. } = plan;
        let has_grammars = fits && plan.unplanned_grammar().is_none();
        let structured_output = has_grammars.then(|| plan.structured_output());
        let (budget, total) = (plan.budget.bytes, plan.total());
        BoardFit { name, budget, fits, context, parallel, total, structured_output }
    }
}
