//! The text of an answer on its way through the filter. Deliberately knows neither the request nor its events.

use super::answer_events::FinishedAnswer;
use crate::guard::filter::{Filter, FilterMatch, FilterStream};
use std::sync::Arc;

/// The filter of one request, and the search in the answer under way.
#[derive(Debug, Default)]
pub(super) struct FilteredText {
    filter: Option<Arc<Filter>>,
    search: Option<FilterStream>,
    found: Option<FilterMatch>,
}

impl FilteredText {
    /// Filters nothing without a filter.
    pub fn new(filter: Option<Arc<Filter>>) -> Self {
        FilteredText { filter, search: None, found: None }
    }

    /// The next answer begins.
    pub fn begin(&mut self) {
        self.search = self.filter.clone().map(FilterStream::new);
    }

    /// Adds a piece of the answer; returns what may be sent, `None` once the answer matches.
    pub fn push(&mut self, piece: &str) -> Option<String> {
        match &mut self.search {
            None => Some(piece.to_owned()),
            Some(search) => {
                let pushed = search.push(piece);
                pushed.map_err(|found| self.found = Some(found)).ok()
            }
        }
    }

    /// The answer is over: returns the rest that may be sent.
    pub fn finish(&mut self) -> Result<String, FilterMatch> {
        if let Some(found) = self.found {
            return Err(found);
        }
        self.search.take().map_or(Ok(String::new()), |mut search| search.finish())
    }

    /// Whether some of the answer is held back.
    pub fn is_holding(&self) -> bool {
        self.search.as_ref().is_some_and(FilterStream::is_holding)
    }

    /// Checks what is sent of an answer in the end: its text, and the calls in it, whose texts may have been written with
    /// escapes.
    pub fn check(&self, finished: &FinishedAnswer) -> Result<(), FilterMatch> {
        let Some(filter) = &self.filter else { return Ok(()) };
        let in_calls = |filter: &Arc<Filter>| {
            let mut calls = finished.tool_calls.iter();
            calls.find_map(|call| filter.find(&call.name).or_else(|| filter.find_in_json(&call.arguments)))
        };
        filter.find(&finished.answer.text).or_else(|| in_calls(filter)).map_or(Ok(()), Err)
    }
}
