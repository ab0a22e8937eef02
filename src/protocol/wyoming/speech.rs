//! What is spoken once Home Assistant has executed an intent. Without a text it stays silent.
//!
//! The answers to questions are in Home Assistant, and only a template can name them. Every text here is fixed but for
//! the time and the date: words of the sentence never become part of a template.

use super::RecognizedIntent;
use jiff::ZonedDateTime;

/// The state of each device that is asked for, or whether any is in the state that is asked for.
const STATES: &str =
    "{% for entity in query.matched[:5] %}{{ entity.name }} is {{ entity.state_with_unit }}. {% endfor %}";
const IS_IN_STATE: &str = "{% if query.matched %}Yes, {{ query.matched | map(attribute='name') | join(', ') }}.\
                           {% else %}No.{% endif %}";
const TEMPERATURE: &str =
    "{% if state %}{{ state.attributes.get('current_temperature') }} degrees.{% endif %}";
const WEATHER: &str =
    "{% if state %}{{ state.state }}, {{ state.attributes.get('temperature') }} degrees.{% endif %}";
const TIMERS: &str = "{% for timer in slots.timers[:5] %}{{ timer.hours_left }} hours, {{ timer.minutes_left }} minutes \
                      and {{ timer.seconds_left }} seconds left. {% else %}There is no timer.{% endfor %}";

/// The text for an intent at this time of day; `None` where there is nothing useful to say.
///
/// `renders_templates`: whether the client renders templates; otherwise it would read them aloud.
pub fn spoken(intent: &RecognizedIntent, renders_templates: bool, now: &ZonedDateTime) -> Option<String> {
    let template = match intent.name.as_str() {
        "HassGetCurrentTime" => return Some(now.strftime("It is %H:%M.").to_string()),
        "HassGetCurrentDate" => return Some(now.strftime("It is %A, %-d %B %Y.").to_string()),
        "HassGetState" if intent.has("state") => IS_IN_STATE,
        "HassGetState" => STATES,
        "HassClimateGetTemperature" => TEMPERATURE,
        "HassGetWeather" => WEATHER,
        "HassTimerStatus" => TIMERS,
        _ => return Some("Done".into()),
    };
    renders_templates.then(|| template.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::{Environment, context};

    fn text(intent: &str, slots: &str, renders_templates: bool) -> Option<String> {
        let answer = format!(r#"{{"intent":"{intent}","slots":{{{slots}}}}}"#);
        let now = "2026-11-28T09:05:00[UTC]".parse().expect("a time");
        spoken(&RecognizedIntent::parse(&answer).expect("an intent"), renders_templates, &now)
    }

    fn rendered(intent: &str, slots: &str, values: minijinja::Value) -> String {
        let template = text(intent, slots, true).expect("a template");
        let mut environment = Environment::new();
        // `dict.get` of Python is the only method that the templates call.
        environment.set_unknown_method_callback(|_, value, method, arguments| {
            assert_eq!(method, "get");
            value.get_item(&arguments[0])
        });
        environment.render_str(&template, values).expect("a sound template")
    }

    #[test]
    fn commands_are_confirmed_and_time_and_date_are_spoken() {
        for renders_templates in [false, true] {
            assert_eq!(text("HassTurnOn", "", renders_templates).as_deref(), Some("Done"));
            assert_eq!(text("HassGetCurrentTime", "", renders_templates).as_deref(), Some("It is 09:05."));
            let date = Some("It is Saturday, 28 November 2026.");
            assert_eq!(text("HassGetCurrentDate", "", renders_templates).as_deref(), date);
        }
    }

    #[test]
    fn questions_are_answered_where_templates_are_rendered() {
        for intent in ["HassGetState", "HassClimateGetTemperature", "HassGetWeather", "HassTimerStatus"] {
            assert_eq!(text(intent, "", false), None, "it would be read aloud");
        }
        let lock = || context! { name => "Front Door", state_with_unit => "locked", state => "locked" };
        let matched = context! { query => context! { matched => vec![lock()] } };
        assert_eq!(rendered("HassGetState", "", matched.clone()), "Front Door is locked. ");
        let state = r#""state":"locked""#;
        assert_eq!(rendered("HassGetState", state, matched), "Yes, Front Door.");
        let none: Vec<String> = vec![];
        assert_eq!(
            rendered("HassGetState", state, context! { query => context! { matched => none } }),
            "No."
        );
        let attributes = context! { current_temperature => 21.5, temperature => 4 };
        let values = context! { state => context! { state => "sunny", attributes } };
        assert_eq!(rendered("HassClimateGetTemperature", "", values.clone()), "21.5 degrees.");
        assert_eq!(rendered("HassGetWeather", "", values), "sunny, 4 degrees.");
        let timer = context! { hours_left => 0, minutes_left => 4, seconds_left => 30 };
        let values = context! { slots => context! { timers => vec![timer] } };
        assert_eq!(rendered("HassTimerStatus", "", values), "0 hours, 4 minutes and 30 seconds left. ");
    }
}
