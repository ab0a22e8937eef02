//! Jinja2's filters.

use super::arithmetic::{arithmetic, rounded};
use super::call_args::CallArgs;
use super::fuel::{RenderResult, fail};
use super::interpreter::Interpreter;
use super::json::{self, Style};
use super::methods;
use super::number;
use super::text::{Builder, Text};
use super::value::{SeqKind, Value, less, to_text};

impl Interpreter<'_> {
    pub fn filter(&mut self, name: &str, value: Value, args: CallArgs) -> RenderResult<Value> {
        match name {
            "upper" | "lower" | "capitalize" | "title" | "trim" | "replace" | "string" | "center"
            | "indent" | "truncate" | "format" | "wordcount" => self.text_filter(name, &value, args),
            "map" | "select" | "reject" | "selectattr" | "rejectattr" => self.each(name, &value, args),
            "sort" | "unique" | "min" | "max" | "dictsort" => self.ordered(name, &value, args),
            "default" | "d" => {
                let [default, boolean] = args.bind(name, ["default_value", "boolean"])?;
                let boolean = boolean.is_some_and(|boolean| boolean.is_true());
                let missing = matches!(value, Value::Undefined(_)) || boolean && !value.is_true();
                Ok(if missing { default.unwrap_or_else(|| Value::str("")) } else { value })
            }
            "length" | "count" => {
                args.bind(name, [])?;
                Ok(Value::Int(value.len()? as i128))
            }
            "abs" => {
                args.bind(name, [])?;
                match &value {
                    Value::Float(float) => Ok(Value::Float(float.abs())),
                    other => match other.as_int() {
                        Some(int) => Ok(Value::Int(int.saturating_abs())),
                        None => fail(format!("a {} has no absolute value", other.kind())),
                    },
                }
            }
            "int" | "float" => number_filter(name, &value, args),
            "round" => {
                let [precision, method] = args.bind(name, ["precision", "method"])?;
                let precision = precision.map_or(Some(0), |precision| precision.as_int());
                let Some(precision) = precision else { return fail("round takes a number of places") };
                let method =
                    method.map_or(Ok(Text::from("common")), |method| to_text(&method, &self.fuel))?;
                rounded(&value, precision, method.as_str())
            }
            "tojson" => self.json_text(&value, args),
            "safe" => fail("the filter safe is only supported as the last filter of an output expression"),
            "e" | "escape" | "forceescape" => fail(format!("the filter {name} is not offered to templates")),
            _ => self.list_filter(name, value, args),
        }
    }

    fn list_filter(&mut self, name: &str, value: Value, args: CallArgs) -> RenderResult<Value> {
        match name {
            "first" | "last" => {
                args.bind(name, [])?;
                let mut items = value.iterate(&self.fuel)?;
                let item = if name == "last" { items.pop() } else { items.into_iter().next() };
                Ok(item.unwrap_or_else(|| Value::undefined("an item of an empty list")))
            }
            "list" => {
                args.bind(name, [])?;
                Value::list(value.iterate(&self.fuel)?, &self.fuel)
            }
            "items" => {
                args.bind(name, [])?;
                match &value {
                    Value::Undefined(_) => Value::seq(SeqKind::Generator, Vec::new(), &self.fuel),
                    Value::Dict(_) => {
                        let items = methods::call(&value, "items", CallArgs::default(), &self.fuel)?;
                        Value::seq(SeqKind::Generator, items.iterate(&self.fuel)?, &self.fuel)
                    }
                    other => fail(format!("a {} has no items", other.kind())),
                }
            }
            "reverse" => {
                args.bind(name, [])?;
                if let Value::Str(text) = &value {
                    self.fuel.spend_bytes(text.len().saturating_mul(8))?;
                    return Ok(Value::Str(text.pick((0..text.chars()).rev())));
                }
                let mut items = value.iterate(&self.fuel)?;
                items.reverse();
                Value::seq(SeqKind::Generator, items, &self.fuel)
            }
            "join" => {
                let [between, attribute] = args.bind(name, ["d", "attribute"])?;
                let between = between.map_or(Ok(Text::default()), |between| to_text(&between, &self.fuel))?;
                let mut texts = Vec::new();
                for item in value.iterate(&self.fuel)? {
                    let item = self.by_attribute(item, attribute.as_ref())?;
                    texts.push(to_text(&item, &self.fuel)?);
                }
                methods::join(&between, &texts, &self.fuel)
            }
            "sum" => {
                let [attribute, start] = args.bind(name, ["attribute", "start"])?;
                let mut sum = start.unwrap_or(Value::Int(0));
                for item in value.iterate(&self.fuel)? {
                    let item = self.by_attribute(item, attribute.as_ref())?;
                    if matches!(sum, Value::Str(_)) {
                        return fail("texts cannot be summed");
                    }
                    sum = arithmetic(super::syntax::Arithmetic::Add, &sum, &item, &self.fuel)?;
                }
                Ok(sum)
            }
            "batch" => self.batch(&value, args),
            _ => fail(format!("the filter {name} is not known, or not offered to templates")),
        }
    }

    fn batch(&mut self, value: &Value, args: CallArgs) -> RenderResult<Value> {
        let [size, fill] = args.bind("batch", ["linecount", "fill_with"])?;
        let size = size.and_then(|size| size.as_int()).and_then(|size| usize::try_from(size).ok());
        let Some(size) = size.filter(|size| *size > 0) else { return fail("batch takes a size") };
        let mut batches = Vec::new();
        for batch in value.iterate(&self.fuel)?.chunks(size) {
            let mut batch = batch.to_vec();
            if let Some(fill) = fill.as_ref().filter(|fill| !matches!(fill, Value::None)) {
                self.fuel.spend(size)?;
                batch.resize(size, fill.clone());
            }
            batches.push(Value::list(batch, &self.fuel)?);
        }
        Value::seq(SeqKind::Generator, batches, &self.fuel)
    }

    /// An item's attribute, by a path with dots or a number.
    fn by_attribute(&mut self, item: Value, attribute: Option<&Value>) -> RenderResult<Value> {
        match attribute {
            None | Some(Value::None) => Ok(item),
            Some(Value::Str(path)) => {
                let mut item = item;
                for part in path.as_str().split('.') {
                    let key = match part.parse() {
                        Ok(index) if part.bytes().all(|b| b.is_ascii_digit()) => Value::Int(index),
                        _ => Value::str(part),
                    };
                    item = self.item(&item, &key)?;
                }
                Ok(item)
            }
            Some(index) => self.item(&item, index),
        }
    }

    fn each(&mut self, name: &str, value: &Value, mut args: CallArgs) -> RenderResult<Value> {
        let items = value.iterate(&self.fuel)?;
        let mut made = Vec::with_capacity(items.len());
        if name == "map" && args.positional.is_empty() {
            let [attribute, default] = args.bind(name, ["attribute", "default"])?;
            if attribute.is_none() {
                return fail("map takes a filter or an attribute");
            }
            for item in items {
                let item = self.by_attribute(item, attribute.as_ref())?;
                let missing = matches!(item, Value::Undefined(_));
                made.push(default.clone().filter(|_| missing).unwrap_or(item));
            }
            return Value::seq(SeqKind::Generator, made, &self.fuel);
        }
        let attribute = match name.ends_with("attr") {
            true if args.positional.is_empty() => return fail(format!("{name} takes an attribute")),
            true => Some(args.positional.remove(0)),
            false => None,
        };
        let test = match args.positional.is_empty() {
            true => None,
            false => Some(to_text(&args.positional.remove(0), &self.fuel)?),
        };
        for item in items {
            let given = CallArgs { positional: args.positional.clone(), named: args.named.clone() };
            self.fuel.spend(given.positional.len() + 1)?;
            if name == "map" {
                let filter = test.clone().unwrap_or_default();
                made.push(self.deeper(|this| this.filter(filter.as_str(), item, given))?);
                continue;
            }
            let tested = self.by_attribute(item.clone(), attribute.as_ref())?;
            let holds = match &test {
                Some(test) => self.test(test.as_str(), &tested, given)?,
                None => tested.is_true(),
            };
            if holds != name.starts_with("reject") {
                made.push(item);
            }
        }
        Value::seq(SeqKind::Generator, made, &self.fuel)
    }

    /// What an item is compared by: texts without their case, unless that counts.
    fn sort_key(&mut self, item: &Value, attribute: Option<&Value>, case: bool) -> RenderResult<Value> {
        match self.by_attribute(item.clone(), attribute)? {
            Value::Str(text) if !case => {
                self.fuel.spend_bytes(text.len())?;
                Ok(Value::Str(methods::case(&text, "lower")?))
            }
            other => Ok(other),
        }
    }

    fn ordered(&mut self, name: &str, value: &Value, args: CallArgs) -> RenderResult<Value> {
        let [reverse, case, attribute] = match name {
            "sort" => args.bind(name, ["reverse", "case_sensitive", "attribute"])?,
            "dictsort" => {
                let [case, by, reverse] = args.bind(name, ["case_sensitive", "by", "reverse"])?;
                let by = match by {
                    None => 0,
                    Some(Value::Str(by)) if by.as_str() == "key" => 0,
                    Some(Value::Str(by)) if by.as_str() == "value" => 1,
                    Some(_) => return fail("dictsort sorts by key or value"),
                };
                [reverse, case, Some(Value::Int(by))]
            }
            _ => {
                let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
                [None, case, attribute]
            }
        };
        let reverse = reverse.is_some_and(|reverse| reverse.is_true());
        let case = case.is_some_and(|case| case.is_true());
        let items = match (name, value) {
            ("dictsort", Value::Dict(_)) => {
                methods::call(value, "items", CallArgs::default(), &self.fuel)?.iterate(&self.fuel)?
            }
            ("dictsort", other) => return fail(format!("a {} cannot be sorted as a dict", other.kind())),
            _ => value.iterate(&self.fuel)?,
        };
        if matches!(&attribute, Some(Value::Str(path)) if path.as_str().contains(',')) {
            return fail("several attributes to sort by are not offered to templates");
        }
        let keyed = self.keyed(name, items, attribute.as_ref(), case)?;
        self.chosen(name, keyed, reverse)
    }

    /// Items with what they are compared by; for `unique` the first of each alone.
    fn keyed(
        &mut self,
        name: &str,
        items: Vec<Value>,
        attribute: Option<&Value>,
        case: bool,
    ) -> RenderResult<Vec<(Value, Value)>> {
        let mut keyed: Vec<(Value, Value)> = Vec::with_capacity(items.len());
        for item in items {
            let key = self.sort_key(&item, attribute, case)?;
            let seen = name == "unique" && {
                let mut seen = false;
                for (other, _) in &keyed {
                    seen |= super::value::equal(other, &key, &self.fuel)?;
                }
                seen
            };
            if !seen {
                keyed.push((key, item));
            }
        }
        Ok(keyed)
    }

    fn chosen(&mut self, name: &str, keyed: Vec<(Value, Value)>, reverse: bool) -> RenderResult<Value> {
        match name {
            "unique" => {
                Value::seq(SeqKind::Generator, keyed.into_iter().map(|(_, item)| item).collect(), &self.fuel)
            }
            "min" | "max" => {
                let mut best: Option<(Value, Value)> = None;
                for (key, item) in keyed {
                    let better = match &best {
                        None => true,
                        Some((other, _)) if name == "min" => less(&key, other, &self.fuel)?,
                        Some((other, _)) => less(other, &key, &self.fuel)?,
                    };
                    best = if better { Some((key, item)) } else { best };
                }
                Ok(best.map_or_else(|| Value::undefined("the first of an empty list"), |(_, item)| item))
            }
            _ => {
                let sorted = self.sorted(keyed, reverse)?;
                Value::list(sorted, &self.fuel)
            }
        }
    }

    fn sorted(&mut self, mut keyed: Vec<(Value, Value)>, reverse: bool) -> RenderResult<Vec<Value>> {
        if reverse {
            keyed.reverse();
        }
        let mut failure = None;
        keyed.sort_by(|(a, _), (b, _)| match super::value::order(a, b, &self.fuel) {
            Ok(order) => order.unwrap_or(std::cmp::Ordering::Equal),
            Err(found) => {
                failure.get_or_insert(found);
                std::cmp::Ordering::Equal
            }
        });
        if reverse {
            keyed.reverse();
        }
        failure.map_or(Ok(()), Err)?;
        Ok(keyed.into_iter().map(|(_, item)| item).collect())
    }

    fn text_filter(&mut self, name: &str, value: &Value, mut args: CallArgs) -> RenderResult<Value> {
        let text = to_text(value, &self.fuel)?;
        self.fuel.spend_bytes(text.len())?;
        match name {
            "string" => args.bind(name, []).map(|_| Value::Str(text)),
            "upper" | "lower" | "capitalize" => {
                args.bind(name, [])?;
                Ok(Value::Str(methods::case(&text, name)?))
            }
            "title" => {
                args.bind(name, [])?;
                title(&text)
            }
            "trim" => {
                let [chars] = args.bind(name, ["chars"])?;
                methods::trim(&text, true, true, chars)
            }
            "replace" => {
                let [Some(old), Some(new), count] = args.bind(name, ["old", "new", "count"])? else {
                    return fail("replace takes two texts");
                };
                let (old, new) = (to_text(&old, &self.fuel)?, to_text(&new, &self.fuel)?);
                methods::replace(&text, &old, &new, count, &self.fuel)
            }
            "center" => {
                let [width] = args.bind(name, ["width"])?;
                let Some(width) = width.unwrap_or(Value::Int(80)).as_int() else {
                    return fail("center takes a width");
                };
                methods::padded(&text, name, width, &Text::from(" "), &self.fuel)
            }
            "indent" => self.indent(&text, args),
            "truncate" => self.truncate(&text, args),
            "format" => {
                if !args.named.is_empty() {
                    return fail("format with names is not offered to templates");
                }
                let values = Value::seq(SeqKind::Tuple, std::mem::take(&mut args.positional), &self.fuel)?;
                super::format::percent(&text, &values, &self.fuel)
            }
            _ => {
                args.bind(name, [])?;
                let words = text.as_str().split(|c: char| !c.is_alphanumeric() && c != '_');
                Ok(Value::Int(words.filter(|word| !word.is_empty()).count() as i128))
            }
        }
    }

    fn indent(&mut self, text: &Text, args: CallArgs) -> RenderResult<Value> {
        let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
        let indent = match width.unwrap_or(Value::Int(4)) {
            Value::Str(indent) => indent,
            width => {
                let width = usize::try_from(width.as_int().unwrap_or_default().max(0)).unwrap_or(usize::MAX);
                self.fuel.spend(width)?;
                Text::from(" ".repeat(width))
            }
        };
        let mut ended = Builder::default();
        ended.push(text);
        ended.push_str("\n");
        let lines = methods::lines(&ended.finish());
        self.fuel.spend(lines.len())?;
        self.fuel.spend_bytes(indent.len().saturating_mul(lines.len()).saturating_add(text.len()))?;
        let blank = blank.is_some_and(|blank| blank.is_true());
        let mut out = Builder::default();
        for (at, line) in lines.iter().enumerate() {
            if at > 0 {
                out.push_str("\n");
            }
            let indented =
                if at == 0 { first.as_ref().is_some_and(Value::is_true) } else { blank || !line.is_empty() };
            if indented {
                out.push(&indent);
            }
            out.push(line);
        }
        Ok(Value::Str(out.finish()))
    }

    fn truncate(&mut self, text: &Text, args: CallArgs) -> RenderResult<Value> {
        let [length, kill, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
        let number =
            |value: Option<Value>, default: i128| value.map_or(Some(default), |value| value.as_int());
        let (Some(length), Some(leeway)) = (number(length, 255), number(leeway, 5)) else {
            return fail("truncate takes a length");
        };
        let end = end.map_or(Ok(Text::from("...")), |end| to_text(&end, &self.fuel))?;
        if length < end.chars() as i128 || leeway < 0 {
            return fail("truncate takes a length that is not below that of its end");
        }
        if text.chars() as i128 <= length.saturating_add(leeway) {
            return Ok(Value::Str(text.clone()));
        }
        let kept = usize::try_from(length).unwrap_or_default() - end.chars();
        self.fuel.spend_bytes(text.len().saturating_mul(8))?;
        let mut cut = text.pick(0..kept);
        if !kill.is_some_and(|kill| kill.is_true()) {
            cut = cut.as_str().rfind(' ').map_or_else(|| cut.clone(), |at| cut.slice(0..at));
        }
        methods::join(&Text::default(), &[cut, end], &self.fuel)
    }

    fn json_text(&mut self, value: &Value, args: CallArgs) -> RenderResult<Value> {
        let [ascii, indent, separators, sorted] =
            args.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
        let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
        let indent = match indent {
            None | Some(Value::None) => None,
            Some(Value::Str(indent)) => Some(indent),
            Some(indent) => {
                let width = usize::try_from(indent.as_int().unwrap_or_default().max(0)).unwrap_or(usize::MAX);
                self.fuel.spend(width)?;
                Some(Text::from(" ".repeat(width)))
            }
        };
        let mut style = Style {
            comma: Text::from(if indent.is_some() { "," } else { ", " }),
            colon: Text::from(": "),
            indent,
            ascii: is_true(ascii),
            sorted: is_true(sorted),
        };
        match separators {
            None | Some(Value::None) => {}
            Some(Value::Seq(pair)) => match pair.items.as_slice() {
                [Value::Str(comma), Value::Str(colon)] => {
                    style.comma = comma.clone();
                    style.colon = colon.clone();
                }
                _ => return fail("separators are two texts"),
            },
            Some(_) => return fail("separators are two texts"),
        }
        let mut out = Builder::default();
        json::write(value, &style, 0, &mut out, &self.fuel)?;
        Ok(Value::Str(out.finish()))
    }
}

/// Jinja2's `title`: words begin behind a space, a hyphen or an opening bracket.
fn title(text: &Text) -> RenderResult<Value> {
    methods::case(text, "title")?;
    let begins = |c: char| super::text::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    Ok(Value::Str(text.map_chars(|before, c| match before.is_none_or(begins) {
        true => c.to_uppercase().collect(),
        false => c.to_lowercase().collect(),
    })))
}

fn number_filter(name: &str, value: &Value, args: CallArgs) -> RenderResult<Value> {
    let [default, base] = args.bind(name, ["default", "base"])?;
    if base.is_some() {
        return fail("a base of int is not offered to templates");
    }
    let float = match value {
        Value::Str(text) => number::parse_float(text.as_str()),
        other => other.as_float(),
    };
    if name == "float" {
        return Ok(float.map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float));
    }
    let int = match value {
        Value::Str(text) => number::parse_int(text.as_str()),
        other => other.as_int(),
    };
    match (int, float) {
        (Some(int), _) => Ok(Value::Int(int)),
        (None, Some(float)) if float.is_finite() && float.abs() < 1e30 => Ok(Value::Int(float as i128)),
        (None, Some(_)) => fail("a number is too large"),
        _ => Ok(default.unwrap_or(Value::Int(0))),
    }
}
