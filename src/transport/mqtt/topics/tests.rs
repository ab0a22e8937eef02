use super::*;

fn topics() -> Topics {
    Topics::new("bitnetd", "cellar")
}

#[test]
fn the_last_answer_is_retained_beside_the_replies_of_a_client_and_nowhere_else() {
    let last = |reply: &str| of_kitchens().last(reply);
    assert_eq!(last("bitnetd/cellar/reply/hall/1").as_deref(), Some("bitnetd/cellar/last/hall"));
    assert_eq!(last("bitnetd/kitchens/reply/hall/a%2Fb").as_deref(), Some("bitnetd/kitchens/last/hall"));
    let longer = last("bitnetd/cellar/reply/hall/a/b");
    assert_eq!(
        [last("bitnetd/cellar/reply/1"), longer, last("bitnetd/other/reply/hall/1")],
        [None, None, None]
    );
}

#[test]
fn prompts_are_distinguished_by_their_client() {
    let parse = |topic: &str| topics().parse(topic.as_bytes());
    let client = |name: &str| Some(TopicKind::Prompt(PromptClient::of_topic("bitnetd/cellar", name)));
    assert_eq!(parse("bitnetd/cellar/prompt"), client(""));
    assert_eq!(parse("bitnetd/cellar/prompt/"), client(""));
    assert_eq!(parse("bitnetd/cellar/prompt/hall"), client("hall"));
    assert_ne!(client("-"), client(""));
    assert_eq!(parse("bitnetd/cellar/cancel"), Some(TopicKind::Cancel));
    assert_eq!(parse("bitnetd/cellar/threads/set"), Some(TopicKind::Threads));
}

#[test]
fn only_the_device_s_own_topic_limits_its_threads() {
    for topic in ["bitnetd/kitchens/threads/set", "old/cellar/threads/set", "bitnetd/cellar/threads"] {
        assert_eq!(of_kitchens().parse(topic.as_bytes()), None, "{topic}");
    }
    let asked = of_kitchens().filters();
    assert!(asked.iter().any(|filter| filter.topic == "bitnetd/cellar/threads/set" && !filter.is_qos_1));
}

#[test]
fn topics_without_a_request_are_ignored() {
    for topic in ["bitnetd/cellar/telemetry", "bitnetd/cellar/prompts", "bitnetd/cellar", "x", "prompt"] {
        assert_eq!(topics().parse(topic.as_bytes()), None, "{topic}");
    }
}

#[test]
fn a_topic_that_is_not_utf_8_is_ignored() {
    assert_eq!(topics().parse(b"bitnetd/cellar/prompt/\xff"), None);
}

/// The label of a prompt's client, without and with a user property.
fn labels(topics: &Topics, topic: &str) -> [String; 2] {
    let Some(TopicKind::Prompt(client)) = topics.parse(topic.as_bytes()) else { panic!("{topic}") };
    [topics.client_label(&client), topics.client_label(&client.with_properties(Some("eve"), None))]
}

#[test]
fn a_long_client_name_is_cut_between_characters_for_the_log_alone() {
    let client = |last: &str| format!("bitnetd/cellar/prompt/{}{last}", "ü".repeat(100));
    assert_eq!(labels(&topics(), &client("a")), ["ü".repeat(32), "ü".repeat(32)]);
    assert_ne!(topics().parse(client("a").as_bytes()), topics().parse(client("b").as_bytes()));
}

#[test]
fn the_log_shows_how_a_client_is_named() {
    assert_eq!(labels(&topics(), "bitnetd/cellar/prompt"), ["-", "-/eve"]);
    assert_eq!(labels(&of_kitchens(), "bitnetd/kitchens/prompt"), ["-@kitchens", "-/eve@kitchens"]);
    assert_eq!(labels(&topics(), "bitnetd/cellar/prompt/a\u{1b}[2J"), ["a[2J", "a[2J"]);
}

#[test]
fn an_id_with_topic_characters_is_escaped_and_stays_one_level() {
    let reply = |id| topics().reply(b"bitnetd/cellar/prompt", id);
    assert_eq!(reply("küche-1"), "bitnetd/cellar/reply/küche-1");
    assert_eq!(reply("a/b+#%"), "bitnetd/cellar/reply/a%2Fb%2B%23%25");
    assert_eq!(reply("\0\u{85}\u{fffe}"), "bitnetd/cellar/reply/%00%C2%85%EF%BF%BE");
}

#[test]
fn the_client_of_a_topic_has_reply_topics_of_its_own() {
    let reply = |client: &str| topics().reply(format!("bitnetd/cellar/prompt/{client}").as_bytes(), "a/b");
    assert_eq!(reply("hall"), "bitnetd/cellar/reply/hall/a%2Fb");
    assert_eq!(reply("50%"), "bitnetd/cellar/reply/50%/a%2Fb");
    assert_eq!(reply("a\u{1b}"), "bitnetd/cellar/reply/a%1B/a%2Fb");
    assert_eq!(reply(""), "bitnetd/cellar/reply/a%2Fb");
    assert_eq!(reply(&"x".repeat(MAX_REPLY_LEVEL + 1)), "bitnetd/cellar/reply/a%2Fb");
}

#[test]
fn two_ids_never_share_a_reply_topic() {
    let reply = |id| topics().reply(b"bitnetd/cellar/prompt", id);
    assert_ne!(reply("a/b"), reply("a%2Fb"));
}

#[test]
fn each_device_has_a_file_of_its_own() {
    let name = |prefix, device| Topics::new(prefix, device).file_name("answers");
    assert!(name("bitnetd", "cellar").starts_with("cellar-"));
    assert_ne!(name("bitnetd", "cellar"), name("other", "cellar"));
    assert!(name("a", &"ü./ \0".repeat(50)).len() < 64);
}

#[test]
fn a_usual_response_topic_is_taken() {
    for topic in [
        "home/kitchen/answer",
        "bitnetd/cellar/reply/mine",
        "bitnetd/cellar/reply/hall/x",
        "bitnetd/cellarette",
    ] {
        assert_eq!(checked(&topics(), topic), Ok(()), "{topic}");
    }
}

#[test]
fn a_response_topic_that_would_hurt_is_refused() {
    let long = "a".repeat(MAX_RESPONSE_TOPIC + 1);
    let deep = "/".repeat(MAX_LEVELS);
    for topic in ["", "a/+", "#", "$SYS/x", "a\0b", &long, &deep] {
        assert!(checked(&topics(), topic).is_err(), "{topic}");
    }
}

/// As asked by the client `hall`.
fn checked(topics: &Topics, response: &str) -> Result<(), String> {
    topics.check_response(response, b"bitnetd/cellar/prompt/hall")
}

#[test]
fn a_client_cannot_have_answers_sent_to_another() {
    let text = checked(&topics(), "bitnetd/cellar/reply/attic/1").expect_err("refused");
    assert!(text.contains("another client") && text.contains("reply/hall/<id>"), "{text}");
    let unnamed = topics().check_response("bitnetd/cellar/reply/hall/1", b"bitnetd/cellar/prompt");
    assert!(unnamed.is_err(), "nor the one that names none");
    let namesake =
        of_kitchens().check_response("bitnetd/cellar/reply/hall/1", b"bitnetd/kitchens/prompt/hall");
    assert!(namesake.is_err(), "nor the group's client of the same name");
}

#[test]
fn the_owner_s_list_holds_for_our_own_tree_too() {
    let list = |filters: &[&str]| {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        Topics::configured(&Mqtt { reply_topics: Some(filters), ..Mqtt::new("b", 1883) }, "cellar")
    };
    assert!(checked(&list(&["home/#"]), "bitnetd/cellar/reply/x").is_err());
    assert_eq!(checked(&list(&["bitnetd/#"]), "bitnetd/cellar/reply/hall/x"), Ok(()));
    assert_eq!(checked(&list(&["bitnetd/cellar/reply/+"]), "bitnetd/cellar/reply/x"), Ok(()));
    assert_eq!(checked(&list(&["home/#"]), "home/x"), Ok(()));
    assert!(checked(&list(&["bitnetd/cellar/prompt"]), "bitnetd/cellar/prompt").is_err(), "never our own");
    assert!(checked(&list(&["$share/g/a"]), "$share/g/a").is_err());
}

fn of_kitchens() -> Topics {
    Topics::shared("bitnetd", "cellar", Some("kitchens"))
}

#[test]
fn a_group_shares_prompts_and_receives_every_cancellation() {
    let asked: Vec<_> = of_kitchens().group_filters().into_iter().map(|filter| filter.topic).collect();
    let shared = "$share/kitchens/bitnetd/kitchens";
    let wanted = [format!("{shared}/prompt"), format!("{shared}/prompt/+"), "bitnetd/kitchens/cancel".into()];
    assert_eq!(asked, wanted);
    assert!(topics().group_filters().is_empty());
}

#[test]
fn prompts_to_a_group_are_answered_below_the_group() {
    let topics = of_kitchens();
    let named = |name: &str| Some(TopicKind::Prompt(PromptClient::of_topic("bitnetd/kitchens", name)));
    assert_eq!(topics.parse(b"bitnetd/kitchens/prompt"), named(""));
    assert_eq!(topics.parse(b"bitnetd/kitchens/prompt/hall"), named("hall"));
    assert_eq!(labels(&topics, "bitnetd/kitchens/prompt/hall")[0], "hall@kitchens");
    assert_eq!(topics.parse(b"bitnetd/kitchens/cancel"), Some(TopicKind::Cancel));
    assert_eq!(topics.reply(b"bitnetd/kitchens/prompt/hall", "a"), "bitnetd/kitchens/reply/hall/a");
    assert!(topics.stale_filters(b"bitnetd/kitchens/prompt/hall").is_empty());
    assert!(checked(&topics, "bitnetd/kitchens/prompt").is_err());
    assert_eq!(checked(&topics, "bitnetd/kitchens/reply/a"), Ok(()));
}

#[test]
fn clients_may_have_the_names_of_topics() {
    for name in ["cancel", "prompt"] {
        let parsed = topics().parse(format!("bitnetd/cellar/prompt/{name}").as_bytes());
        assert_eq!(parsed, Some(TopicKind::Prompt(PromptClient::of_topic("bitnetd/cellar", name))));
    }
}

#[test]
fn prompts_of_an_earlier_group_are_answered_and_its_subscriptions_ended() {
    let topic = b"old/attic/prompt/hall";
    assert_eq!(
        of_kitchens().parse(topic),
        Some(TopicKind::Prompt(PromptClient::of_topic("old/attic", "hall")))
    );
    assert_eq!(of_kitchens().reply(topic, "a"), "old/attic/reply/hall/a");
    let given_up = of_kitchens().stale_filters(topic);
    for filter in
        ["$share/attic/old/attic/prompt/+", "old/attic/prompt", "old/attic/cancel", "old/attic/threads/set"]
    {
        assert!(given_up.iter().any(|one| one == filter), "{filter}: {given_up:?}");
    }
    assert!(of_kitchens().stale_filters(b"bitnetd/cellar/prompt").is_empty());
}

#[test]
fn an_answer_never_becomes_a_prompt_of_our_own() {
    for topic in ["prompt", "prompt/hall", "cancel", "threads/set", "availability", "telemetry"] {
        let text = checked(&topics(), &format!("bitnetd/cellar/{topic}"));
        assert!(text.expect_err("refused").contains("own"), "{topic}");
    }
}
