//! What a report is asked for: the query of `GET /report`.
//!
//! Deliberately knows no report.

/// The longest report: all that the history contains.
pub const MAX_HOURS: u32 = 30 * 24;
/// The most that a kilowatt hour may cost, in whatever currency.
const MAX_PRICE: f64 = 1e6;

/// The forms of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportForm {
    /// One page with plots.
    Html,
    /// Text for people.
    Text,
    /// The summary and the steps as one JSON object.
    Json,
    /// The steps, one a line.
    Csv,
}

impl ReportForm {
    const ALL: [ReportForm; 4] = [ReportForm::Html, ReportForm::Text, ReportForm::Json, ReportForm::Csv];

    /// Its name in the query.
    pub fn name(self) -> &'static str {
        match self {
            ReportForm::Html => "html",
            ReportForm::Text => "text",
            ReportForm::Json => "json",
            ReportForm::Csv => "csv",
        }
    }

    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            ReportForm::Html => "text/html; charset=utf-8",
            ReportForm::Text => "text/plain; charset=utf-8",
            ReportForm::Json => "application/json",
            ReportForm::Csv => "text/csv; charset=utf-8",
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReportRequest {
    /// The last so many hours: 1 to [`MAX_HOURS`].
    pub hours: u32,
    /// Its form.
    pub form: ReportForm,
    /// The price of a kilowatt hour.
    pub price: Option<f64>,
}

impl Default for ReportRequest {
    fn default() -> Self {
        ReportRequest { hours: 24, form: ReportForm::Html, price: None }
    }
}

impl ReportRequest {
    /// Reads a query such as `hours=6&format=json&price=0.3`; the error names the key.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut request = ReportRequest::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "hours" => {
                    request.hours = hours(value).ok_or_else(|| format!("hours: give 1 to {MAX_HOURS}"))?
                }
                "format" => {
                    let form = ReportForm::ALL.into_iter().find(|form| form.name() == value);
                    request.form = form.ok_or("format: give html, text, json or csv")?;
                }
                "price" => {
                    let price = price(value).ok_or("price: give what a kilowatt hour costs, as 0.30")?;
                    request.price = Some(price);
                }
                _ => return Err("a key is not known; there are hours, format and price".into()),
            }
        }
        Ok(request)
    }

    /// The query that is read as this request.
    pub fn query(&self) -> String {
        let price = self.price.map_or(String::new(), |price| format!("&price={price}"));
        format!("hours={}&format={}{price}", self.hours, self.form.name())
    }
}

fn hours(text: &str) -> Option<u32> {
    text.parse().ok().filter(|hours| (1..=MAX_HOURS).contains(hours))
}

/// The price of a kilowatt hour: a number from 0 on.
pub fn price(text: &str) -> Option<f64> {
    text.parse().ok().filter(|price| (0.0..=MAX_PRICE).contains(price))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_as_it_was_written() {
        assert_eq!(ReportRequest::parse(""), Ok(ReportRequest::default()));
        for form in ReportForm::ALL {
            for price in [None, Some(0.0), Some(0.315)] {
                let request = ReportRequest { hours: 720, form, price };
                assert_eq!(ReportRequest::parse(&request.query()), Ok(request));
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |query: &str| ReportRequest::parse(query).expect_err(query);
        for query in ["hours=0", "hours=721", "hours=-1", "hours=1e3", "hours", "hours=%31"] {
            assert!(wrong(query).starts_with("hours: "), "{query}");
        }
        for query in ["price=-1", "price=nan", "price=inf", "price=1e300", "price=€"] {
            assert!(wrong(query).starts_with("price: "), "{query}");
        }
        assert!(wrong("format=xml").starts_with("format: "));
        assert!(!wrong("<script>=1").contains('<'), "what came is not repeated");
    }
}
