//! The forms of the families, and which files get them.

use super::{prompt, tokenizer, turn};
use crate::fixtures::{self, File};
use bitnetd::engine::error::LoadError;
use bitnetd::engine::gguf::{FileMap, Gguf};
use bitnetd::engine::tokenizer::{ChatRole, ChatTemplate, Tokenizer, Turn};

/// What the official 2B-4T file holds, which nothing was trained on.
const OFFICIAL_WRONG: &str = "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}\
    {% if message['role'] == 'user' %}{{ 'Human: ' + message['content'] + '\\n\\nBITNETAssistant: ' + eos_token }}\
    {% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}";

const TALK: [Turn<'_>; 4] = [
    Turn { role: ChatRole::System, text: " Be brief.\n" },
    Turn { role: ChatRole::User, text: "Hello " },
    Turn { role: ChatRole::Assistant, text: "Hi" },
    Turn { role: ChatRole::User, text: "Bye<|eot_id|>" },
];

/// The small model with other marks and another architecture.
fn family(arch: &str, marks: &[&str], change: impl FnOnce(&mut File)) -> Tokenizer {
    let mut file = fixtures::small();
    let mut tokens = fixtures::byte_tokens();
    tokens.extend(["he", "the"].into_iter().chain(marks.iter().copied()).map(String::from));
    let mut kinds = vec![1; tokens.len()];
    kinds[258..].fill(3);
    file.set("general.architecture", fixtures::text(arch));
    file.set("tokenizer.ggml.tokens", fixtures::texts(&tokens));
    file.set("tokenizer.ggml.token_type", fixtures::integers(&kinds));
    change(&mut file);
    tokenizer(&file).expect("sound")
}

#[track_caller]
fn noted(tokenizer: &Tokenizer, wanted: &str) {
    let notes = tokenizer.notes();
    assert!(notes.iter().any(|note| note.contains(wanted)), "{wanted:?} is not in {notes:?}");
    assert!(notes.iter().all(|note| !note.contains(char::is_control) && note.len() < 300), "{notes:?}");
}

#[test]
fn the_official_files_template_is_replaced_by_what_the_model_was_trained_on() {
    for arch in ["bitnet-b1.58", "bitnet-25"] {
        let chat = family(arch, &["<|begin_of_text|>", "<|eot_id|>"], |file| {
            file.set("tokenizer.chat_template", fixtures::text(OFFICIAL_WRONG));
        });
        noted(&chat, "not what the model was trained on; bitnet b1.58's form is used");
        let wanted = "<|begin_of_text|>System: Be brief.<|eot_id|>User: Hello<|eot_id|>Assistant: Hi<|eot_id|>\
                      User: Bye<|eot_id|><|eot_id|>Assistant: ";
        assert_eq!(prompt(&chat, &TALK), wanted);
        let ids = chat.prompt_chat(&TALK).expect("taken");
        assert_eq!(ids.iter().filter(|id| **id == 259).count(), 4, "one end a turn, none of them said");
    }
}

#[test]
fn what_llama_cpp_calls_bitnet_is_2b_4t_where_the_vocabulary_is_its_own() {
    let wrong = |file: &mut File| file.set("tokenizer.chat_template", fixtures::text(OFFICIAL_WRONG));
    let llama3 = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"];
    for template in [wrong, |_: &mut File| {}] {
        let chat = family("bitnet", &llama3, template);
        noted(&chat, "bitnet b1.58's form is used");
        assert_eq!(prompt(&chat, &TALK[1..2]), "<|begin_of_text|>User: Hello<|eot_id|>Assistant: ");
    }
}

#[test]
fn a_bitnet_file_should_hold_the_form_where_it_has_no_template_or_a_wrong_one() {
    let template_for = |arch: &str, template: Option<&str>| {
        let mut file = fixtures::small();
        file.set("general.architecture", fixtures::text(arch));
        if let Some(template) = template {
            file.set("tokenizer.chat_template", fixtures::text(template));
        }
        let file = Gguf::parse(FileMap::from(file.bytes())).expect("sound");
        Tokenizer::template_for(&file).expect("sound")
    };
    for arch in ["bitnet-b1.58", "bitnet-25", "bitnet"] {
        let form = template_for(arch, None).expect("a form");
        assert_eq!(template_for(arch, Some(OFFICIAL_WRONG)), Some(form), "{arch}");
        // A fine-tune's own is believed.
        assert_eq!(template_for(arch, Some("{{ messages[-1].content }}")), None, "{arch}");
        assert_eq!(template_for(arch, Some(form)), None, "{arch}");
        // A file that holds it gives the same prompts as one that holds none.
        let without = fixtures::small();
        let mut with = fixtures::small();
        with.set("tokenizer.chat_template", fixtures::text(form));
        let [with, without] = [with, without].map(|file| tokenizer(&file).expect("sound"));
        assert!(!with.notes().iter().any(|note| note.contains("form is used")), "{:?}", with.notes());
        assert_eq!(with.prompt_chat(&TALK), without.prompt_chat(&TALK));
    }
    assert_eq!(template_for("llama", None), None);
    assert_eq!(template_for("llama", Some(OFFICIAL_WRONG)), None);
}

#[test]
fn a_sound_template_for_the_same_model_is_kept() {
    let chat = family("bitnet-b1.58", &["<|begin_of_text|>", "<|eot_id|>"], |file| {
        let template = "{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}A: ";
        file.set("tokenizer.chat_template", fixtures::text(template));
    });
    assert_eq!(prompt(&chat, &TALK[1..2]), "Hello <|eot_id|>A: ");
    assert!(!chat.notes().iter().any(|note| note.contains("form is used")), "{:?}", chat.notes());
}

#[test]
fn a_finetunes_own_template_is_believed_and_the_owner_decides() {
    let chatml = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
                  {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let mut file = fixtures::small();
    file.set("general.architecture", fixtures::text("bitnet-b1.58"));
    file.set("tokenizer.chat_template", fixtures::text(chatml));
    let wanted = "<|im_start|>user\nHello <|im_end|>\n<|im_start|>assistant\n";
    let bitnet = "<|begin_of_text|>User: Hello<|eot_id|>Assistant: ";
    let place = "t.jinja".to_owned();
    let source = "T{{ messages[-1].content }}".to_owned();
    for (choice, wanted, called) in [
        (ChatTemplate::Auto, wanted, "the file's own"),
        (ChatTemplate::File, wanted, "the file's own"),
        (ChatTemplate::BuiltIn, bitnet, "built-in: bitnet b1.58's form"),
        (ChatTemplate::Text { place, source }, "THello ", "t.jinja"),
    ] {
        let chat = read_with(&file, &choice).expect("sound");
        assert_eq!(prompt(&chat, &TALK[1..2]), wanted, "{choice:?}");
        assert_eq!(chat.chat_template(), called);
    }
    // Even one that is known to be wrong.
    file.set("tokenizer.chat_template", fixtures::text(OFFICIAL_WRONG));
    let chat = read_with(&file, &ChatTemplate::File).expect("sound");
    assert!(prompt(&chat, &TALK[1..2]).contains("BITNETAssistant"));
}

#[test]
fn a_template_that_was_named_and_cannot_be_used_is_an_error() {
    let refused =
        |file: &File, choice: &ChatTemplate| read_with(file, choice).expect_err("refused").to_string();
    let mut file = fixtures::small();
    file.remove("tokenizer.chat_template");
    assert!(refused(&file, &ChatTemplate::File).contains("has no chat template"));
    file.set("tokenizer.chat_template", fixtures::text("{% if"));
    let said = refused(&file, &ChatTemplate::File);
    assert!(said.contains("tokenizer.chat_template") && said.contains("built-in"), "{said}");
    let text = ChatTemplate::Text { place: "t.jinja".into(), source: "nothing".into() };
    assert!(refused(&file, &text).contains("t.jinja: leaves out what the user says"));
}

#[test]
fn a_templates_file_is_a_regular_one_of_bounded_size() {
    let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
    let of = |name: &str| ChatTemplate::of_setting(&folder.path().join(name));
    let refused = |name: &str| of(name).expect_err("refused").to_string();
    std::fs::write(folder.path().join("sound"), "\u{feff}{{ 1 }}").expect("written");
    let Ok(ChatTemplate::Text { source, .. }) = of("sound") else { panic!("not read") };
    assert_eq!(source, "{{ 1 }}");
    assert!(refused("missing").contains("cannot be read"));
    assert!(refused(".").contains("is no regular file"));
    assert!(ChatTemplate::of_setting("/dev/zero".as_ref()).is_err());
    std::fs::write(folder.path().join("long"), "x".repeat(70_000)).expect("written");
    assert!(refused("long").contains("more than 65536 bytes"));
    std::fs::write(folder.path().join("bytes"), [0xff]).expect("written");
    assert!(refused("bytes").contains("UTF-8"));
}

fn read_with(file: &File, choice: &ChatTemplate) -> Result<Tokenizer, LoadError> {
    Tokenizer::read_with(&Gguf::parse(FileMap::from(file.bytes())).expect("sound"), choice)
}

#[test]
fn each_family_has_its_form_where_the_file_has_none() {
    let llama3 = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"];
    let falcon3 = ["<|endoftext|>", "<|endoftext2|>", "<|system|>", "<|user|>", "<|assistant|>"];
    let head = |role: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n");
    let cases = [
        (
            family("llama", &llama3, |_| {}),
            format!(
                "<|begin_of_text|>{}Be brief.<|eot_id|>{}Hello<|eot_id|>{}Hi<|eot_id|>{}",
                head("system"),
                head("user"),
                head("assistant"),
                head("assistant")
            ),
            "llama 3",
        ),
        (
            family("llama", &falcon3, |file| file.set("tokenizer.ggml.pre", fixtures::text("falcon3"))),
            "<|system|>\n Be brief.\n\n<|user|>\nHello \n<|assistant|>\nHi<|endoftext2|>\n<|assistant|>\n"
                .into(),
            "falcon3",
        ),
        (
            family("llama", &["<|a|>", "<|b|>"], |file| {
                file.set("tokenizer.ggml.pre", fixtures::text("falcon_e"))
            }),
            "system Be brief.\n\nuserHello \nassistantHi\nassistant\n".into(),
            "falcon-e",
        ),
        (
            family("llama", &["<|x|>", "<|im_end|>", "<|im_start|>"], |_| {}),
            "<|im_start|>system\n Be brief.\n<|im_end|>\n<|im_start|>user\nHello <|im_end|>\n\
             <|im_start|>assistant\nHi<|im_end|>\n<|im_start|>assistant\n"
                .into(),
            "chatml",
        ),
        (
            family("bitnet-b1.58", &["<s>", "</s>"], |_| {}),
            "<s>System: Be brief.\nUser: Hello\nAssistant: Hi\nAssistant: ".into(),
            "bitnet b1.58",
        ),
        (
            family("bitnet", &["<s>", "</s>"], |_| {}),
            "<s> Be brief.\n\nHello \nHi".into(),
            "continues the text without a template",
        ),
    ];
    for (chat, wanted, name) in cases {
        assert_eq!(prompt(&chat, &TALK[..3]), wanted, "{name}");
        noted(&chat, name);
    }
}

#[test]
fn a_template_that_cannot_be_used_gives_way_to_the_familys_form() {
    for template in
        ["{% bad", "{{ 'x' * 10 ** 9 }}<|eot_id|>", "{{ messages[-1].content | length }}<|eot_id|>"]
    {
        let chat = family("bitnet-b1.58", &["<|begin_of_text|>", "<|eot_id|>"], |file| {
            file.set("tokenizer.chat_template", fixtures::text(&format!("{template}{{# eot_id #}}")));
        });
        noted(&chat, "bitnet b1.58's form is used");
        assert_eq!(prompt(&chat, &TALK[1..2]), "<|begin_of_text|>User: Hello<|eot_id|>Assistant: ");
    }
}

#[test]
fn a_template_that_cannot_be_used_gives_way_to_plain_text_where_there_is_no_form() {
    for template in ["{% bad", "{{ 'x' * 10 ** 9 }}", "{{ messages[-1].content | length }}"] {
        let chat = family("llama", &["<s>", "</s>"], |file| {
            file.set("tokenizer.chat_template", fixtures::text(template));
        });
        noted(&chat, "the file's chat template ");
        noted(&chat, "; the model continues the text without a template");
        assert_eq!(prompt(&chat, &TALK[1..2]), "<s>Hello ");
    }
}

#[test]
fn llama_3s_own_template_gives_what_transformers_gives() {
    // Its `tokenizer_config.json`; the answer is Jinja2's with the settings of transformers.
    let template = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = \
        '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}\
        {% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";
    let marks = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"];
    let own = family("llama", &marks, |file| file.set("tokenizer.chat_template", fixtures::text(template)));
    let form = family("llama", &marks, |_| {});
    assert!(!own.notes().iter().any(|note| note.contains("template")), "{:?}", own.notes());
    assert_eq!(own.prompt_chat(&TALK), form.prompt_chat(&TALK));
}

#[test]
fn falcon3s_own_template_gives_what_the_form_gives() {
    let template = "{%- if tools %}{{- 'no' }}{%- else %}{%- for message in messages %}{%- if message['role'] == 'system' %}\n\
        {{- '<|system|>\\n' + message['content'] + '\\n' }}\n{%- elif message['role'] == 'user' %}\n\
        {{- '<|user|>\\n' + message['content'] + '\\n' }}\n{%- elif message['role'] == 'assistant' %}\n\
        {%- if not loop.last %}\n{{- '<|assistant|>\\n'  + message['content'] + eos_token + '\\n' }}\n{%- else %}\n\
        {{- '<|assistant|>\\n'  + message['content'] + eos_token }}\n{%- endif %}\n{%- endif %}\n\
        {%- if loop.last and add_generation_prompt %}\n{{- '<|assistant|>\\n' }}\n{%- endif %}\n{%- endfor %}\n{%- endif %}";
    let marks = ["<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"];
    let own = family("llama", &marks, |file| file.set("tokenizer.chat_template", fixtures::text(template)));
    let form = family("llama", &marks, |_| {});
    assert!(!own.notes().iter().any(|note| note.contains("template")), "{:?}", own.notes());
    for talk in [&TALK[..2], &TALK, &TALK[1..2]] {
        assert_eq!(own.prompt_chat(talk), form.prompt_chat(talk));
    }
}

#[test]
fn every_mark_that_ends_a_turn_ends_an_answer_and_text_that_reads_like_one_does_not() {
    let ends =
        ["<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<|end|>", "<|eom_id|>", "</s>"];
    let chat = family("llama", &ends, |file| file.set("tokenizer.ggml.eot_token_id", fixtures::number(65)));
    for id in (258..258 + ends.len() as u32).chain([65]) {
        assert!(chat.is_end(id), "{id}");
    }
    assert!(!chat.is_end(66) && !chat.is_end(257));
    noted(&chat, "answers end at ");
    noted(&chat, "<|im_end|> (261)");
    // Llama 3 has "</s>" as a word of text.
    let mut file = fixtures::small();
    let mut tokens = fixtures::byte_tokens();
    tokens.extend(["he", "</s>", "<|begin_of_text|>", "<|eot_id|>"].map(String::from));
    file.set("tokenizer.ggml.tokens", fixtures::texts(&tokens));
    file.set("tokenizer.ggml.merges", fixtures::texts(&["h e".into()]));
    assert!(!tokenizer(&file).expect("sound").is_end(257));
}

#[test]
fn a_file_without_a_pre_tokenizers_name_says_so() {
    let mut file = fixtures::small();
    file.remove("tokenizer.ggml.pre");
    noted(&tokenizer(&file).expect("sound"), "names no pre-tokenizer; llama-bpe is used");
    let one = tokenizer(&fixtures::small()).expect("sound").prompt_chat(&[turn(ChatRole::User, "x")]);
    assert_eq!(tokenizer(&file).expect("sound").prompt_chat(&[turn(ChatRole::User, "x")]), one);
}

#[test]
fn a_template_with_tools_and_dates_as_later_llamas_have_it_is_taken() {
    let template = r#"{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}
    {%- if false %}{% set date_string = strftime_now("%d %b %Y") %}{% else %}{% set date_string = "26 Jul 2024" %}{% endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{%- if tools is not none and not (builtin_tools is defined) %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\n\n" }}{%- endfor %}
    {{- builtin_tools | reject('equalto', 'x') | join(", ") + "\n\n" }}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("only one call at once") }}{%- endif %}
        {%- for name, value in message.tool_calls[0].function.arguments | items %}{{- name + '="' + value + '"' }}{%- if not loop.last %}{{- ", " }}{%- endif %}{%- endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;
    let marks = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"];
    let chat = family("llama", &marks, |file| file.set("tokenizer.chat_template", fixtures::text(template)));
    assert!(!chat.notes().iter().any(|note| note.contains("template")), "{:?}", chat.notes());
    let head = |role: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n");
    let wanted = format!(
        "<|begin_of_text|>{}Today Date: 26 Jul 2024\n\nBe brief.<|eot_id|>{}Hello<|eot_id|>{}",
        head("system"),
        head("user"),
        head("assistant")
    );
    assert_eq!(prompt(&chat, &TALK[..2]), wanted);
}
