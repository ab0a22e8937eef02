//! Templates that try to hang the daemon, or to exhaust its memory or its stack: each is recognised within a short time
//! when it is loaded, and not used.

use super::{NOT_USED, read};
use crate::allocations;

/// Maximum size of a single allocation: the fuel of a rendering is enough for some 4 MB.
const MOST: usize = 16 << 20;

/// Some errors come from the parser and some from the interpreter; what matters is that one comes.
#[track_caller]
fn refused(template: &str) {
    let (read, largest) = allocations::largest(|| read(template));
    let shown: String = template.chars().take(120).collect();
    let Err(said) = read else { panic!("not refused: {shown}") };
    assert!(said.starts_with(NOT_USED), "{said}: {shown}");
    assert!(said.len() < 600 && !said.contains(char::is_control), "{said:?}: {shown}");
    assert!(largest < MOST, "{largest} bytes at once: {shown}");
}

#[test]
fn loops_without_end_run_out_of_fuel() {
    refused(
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}{{ messages[-1].content }}",
    );
    refused("{% for i in range(99999) %}{{ messages | length }}{% endfor %}{{ messages[-1].content }}");
    refused("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}");
    refused("{{ range(10 ** 18) | list | length }}");
    refused("{% set a = range(99999) | list %}{% for i in a %}{% if 'x' in a %}{% endif %}{% endfor %}");
    refused(
        "{% set a = range(9999) | list %}{% set b = range(9999) | list %}{% for i in a %}{{ 'y' if a == b }}{% endfor %}",
    );
}

#[test]
fn texts_of_any_size_are_not_made() {
    for made in [
        "'x' * 10 ** 9",
        "'x' * 100000000",
        "'%1000000000s' | format('a')",
        "'{:>1000000000}'.format('a')",
        "'{0:1000000000}'.format(1)",
        "'a' | indent(1000000000)",
        "'a'.ljust(1000000000)",
        "'a'.zfill(1000000000)",
        "'a' | center(1000000000)",
        "('a' * 100000).replace('a', 'a' * 100000)",
        "('a' * 100000).replace('', 'a' * 100000)",
        "('a' * 100000) | replace('a', 'a' * 100000)",
        "('ab' * 100000).split('a') | join('b' * 100000)",
        "[1] | batch(100000000, 'x') | list | length",
        "[1] | slice(1000000000) | list | length",
        "([1] * 100000000) | length ~ messages[-1].content",
        "([1] * 100000000) | join",
        "10 ** 10 ** 10",
        "lipsum(100000)",
        "'%s' * 99999999 % 1",
        "[[1] * 9999] * 9999",
        "('a ' * 9999).split() | map('center', 99999) | list",
        "['a'] | map('indent', 99999999, true) | list",
        "[1] | tojson(indent=99999999)",
        "'a'.rjust(99999999, 'b')",
        "'é' * 99999999",
        "range(99999) | map('string') | list | length",
    ] {
        refused(&format!("{{{{ {made} }}}}"));
        refused(&format!("{{% set a = {made} %}}{{{{ a ~ 'x' }}}}"));
        refused(&format!("{{{{ messages[-1].content }}}}{{{{ ({made}) | length }}}}"));
    }
    refused(
        "{% set ns = namespace(a='xxxxxxxx') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}",
    );
    refused(
        "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a | length }}",
    );
    refused(
        "{% for m in messages %}{% for i in range(9000) %}0123456789abcdef{% endfor %}{{ m.content }}{% endfor %}",
    );
}

#[test]
fn lists_that_hold_themselves_many_times_are_not_made() {
    let grow = |step: &str, end: &str| {
        format!(
            "{{% set ns = namespace(a=[0], b=[0]) %}}{{% for i in range(40) %}}{{% set ns.a = {step} %}}\
             {{% endfor %}}{end}{{{{ messages[-1].content }}}}"
        )
    };
    for end in
        ["{{ ns.a }}", "{{ ns.a | tojson }}", "{{ ns.a ~ '' }}", "{{ ns.a == ns.b }}", "{{ ns.a < ns.b }}"]
    {
        for step in [
            "[ns.a, ns.a]",
            "(ns.a, ns.a)",
            "ns.a, ns.a",
            "{'l': ns.a, 'r': ns.a}",
            "[[ns.a, ns.a]]",
            "[ns.a] * 2",
            "dict(l=ns.a, r=ns.a)",
            "namespace(l=ns.a, r=ns.a)",
            "[ns.a] | zip([ns.a]) | list",
            "[x for x in ns.a]",
            "ns.a + ns.a",
            "(ns.a + ns.a)",
            "ns.a + ns.a if i else [1] + [1]",
            "dict(l=ns.a, r=[ns.a])",
            "[ns.a, [ns.a]]",
            "ns.a + ns.a[:]",
            "ns.a * 3",
            "'x'.split('y') + ns.a + ns.a",
            "ns.a * 2",
        ] {
            refused(&grow(step, end));
        }
    }
    // These stay small, and are used.
    for step in ["ns.a + ('x' | list)", "ns.a + ns.a if i else '' + ''"] {
        let (read, largest) = allocations::largest(|| read(&grow(step, "{{ ns.a == ns.b }}")));
        assert!(read.is_ok() && largest < MOST, "{step}: {largest} {read:?}");
    }
    refused("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns ~ '' }}");
    refused("{% set n = namespace %}{% set ns = n() %}{% set ns.a = ns %}{{ ns ~ '' }}");
    refused("{% set ns = namespace() %}{% set m = ns %}{% set ns.a = m %}{{ messages[-1].content }}");
    refused("{% macro f(x) %}{{ x ~ '' }}{% endmacro %}{% set ns = namespace() %}{{ f(ns) }}");
    refused("{% macro f(x) %}{{ f(x + x) }}{% endmacro %}{{ f([1]) }}");
    refused("{% set bos_token = [1] %}{% set a = bos_token + bos_token %}{{ a | length }}");
    refused("{% for bos_token in messages %}{{ bos_token }}{% endfor %}");
    refused("{{ [[1] * 1000] * 1000 * 1000 }}");
    refused("{{ [messages, messages] }}");
}

#[test]
fn depth_is_an_error_and_not_the_end_of_the_stack() {
    let many = 100_000;
    for (before, unit, after) in [
        ("{{ ", "(", "1"),
        ("{{ ", "[", ""),
        ("{{ ", "not ", "1 }}"),
        ("{{ ", "-", "1 }}"),
        ("{{ 1", "+1", " }}"),
        ("{{ 1", " ~ 'x'", " }}"),
        ("{{ 2", "**2", " }}"),
        ("{{ a", ".b", " }}"),
        ("{{ a", "[0]", " }}"),
        ("{{ a", "()", " }}"),
        ("{{ a", "|e", " }}"),
        ("{{ ", "'a' if 1 else ", "1 }}"),
        ("", "{% if 1 %}", ""),
        ("", "{% set a %}", ""),
        ("", "{% macro a() %}", ""),
        ("{% if a %}", "{% elif b %}", "{% endif %}"),
        ("", "{% for i in [1] %}", ""),
        ("{{ [", "1,", "] | length }}"),
    ] {
        for times in [200, 1000, 5000, many] {
            let times = times.min((1 << 20) / unit.len() - 100); // no longer text is read from a file
            // Where so many are allowed, the template is refused only if it leaves out the message.
            let template = format!("{before}{}{after}{{{{ messages[-1].content }}}}", unit.repeat(times));
            let read = read(&template);
            assert!(times < 1000 || read.is_err(), "{times} of {unit:?}");
        }
    }
    let nested = format!("{}x{}", "{% for i in [1] %}".repeat(140), "{% endfor %}".repeat(140));
    refused(&nested);
    refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
    refused("{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}");
}

#[test]
fn lists_that_are_changed_again_and_again_take_no_stack() {
    for step in [
        "| reverse",
        "| list",
        "| sort",
        "| unique",
        "| map('upper')",
        "| select",
        "[:]",
        "[0:]",
        "| reverse | list",
    ] {
        let template = format!(
            "{{% set ns = namespace(a=['x']) %}}{{% for i in range(9000) %}}{{% set ns.a = ns.a {step} %}}\
             {{% endfor %}}{{{{ ns.a | length }}}}{{{{ ns.a | join }}}}{{{{ messages[-1].content }}}}"
        );
        // Whether there is fuel for it or not: that it ends is the point.
        let (_, largest) = allocations::largest(|| read(&template));
        assert!(largest < MOST, "{largest} bytes at once: {step}");
    }
}

#[test]
fn nothing_outside_the_template_is_reached() {
    for template in [
        "{% include '/etc/passwd' %}",
        "{% extends '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{% from '/etc/passwd' import x %}",
        "{{ debug() }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ ''.__class__.mro()[1].__subclasses__() }}",
        "{{ self.__init__ }}",
        "{{ strftime_now('%s') }}",
        "{% do messages %}",
        "{% call f() %}{% endcall %}",
    ] {
        refused(&format!("{template}{{{{ messages[-1].content }}}}"));
    }
}

#[test]
fn what_is_no_template_is_noted_with_its_line() {
    for (template, wanted) in [
        ("{{ messages[-1].content }", "expected end of variable block (line 1)"),
        ("a\nb\n{% if %}", "line 3"),
        ("{% endfor %}", "unknown statement"),
        ("{{ messages[-1].content | nothing }}", "nothing"),
        ("{{ messages[0].nothing.more }}", "undefined"),
        ("{{ raise_exception('only\\nfor \\u001b[1m tests') }}", "only\\nfor \\u{1b}[1m tests"),
        ("no content", "leaves out what the user says"),
        ("", "leaves out what the user says"),
        ("{{ messages }}", "cannot be written"),
    ] {
        let said = read(template).expect_err("no template");
        assert!(said.contains(wanted), "{wanted:?} is not in {said:?}");
        assert!(said.ends_with("; the model continues the text without a template"), "{said}");
    }
}
