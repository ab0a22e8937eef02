//! Runs a template's statements, with the scopes that Jinja2 gives them.

use super::call_args::CallArgs;
use super::fuel::{Fuel, RenderError, RenderResult, fail};
use super::syntax::{Args, For, Macro, NamedCall, Stmt, StmtKind, Target};
use super::text::{Builder, Text};
use super::value::{SeqKind, Value, to_text};
use std::rc::Rc;

/// Statements, expressions, loops and macros inside each other: they take stack.
const MAX_DEPTH: usize = 250;

/// Writes the local time in a format: what `strftime_now` calls.
pub(super) type Strftime<'c> = &'c dyn Fn(&str) -> Result<String, String>;

/// Names with their values, and the scope around.
#[derive(Debug, Default)]
struct Scope<'t> {
    parent: Option<usize>,
    names: Vec<(&'t str, Value)>,
    /// Whether a macro that was defined in it may outlive it.
    captured: bool,
}

/// A loop that runs, or ran.
#[derive(Debug)]
pub(super) struct Loop<'t> {
    pub node: &'t For,
    pub scope: usize,
    pub items: Rc<Vec<Value>>,
    pub index: usize,
    pub depth: usize,
    pub changed: Option<Value>,
}

/// How a statement ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

pub(super) struct Interpreter<'t> {
    pub fuel: Fuel,
    pub strftime: Strftime<'t>,
    depth: usize,
    scopes: Vec<Scope<'t>>,
    scope: usize,
    pub namespaces: Vec<Vec<(String, Value)>>,
    pub loops: Vec<Loop<'t>>,
    macros: Vec<(&'t Macro, usize)>,
    /// What is written; the last is written to.
    output: Vec<Builder>,
}

impl<'t> Interpreter<'t> {
    pub fn new(fuel: Fuel, strftime: Strftime<'t>, names: Vec<(&'t str, Value)>) -> Self {
        let root = Scope { names, captured: true, parent: None };
        Interpreter {
            fuel,
            strftime,
            depth: 0,
            scopes: vec![root],
            scope: 0,
            namespaces: Vec::new(),
            loops: Vec::new(),
            macros: Vec::new(),
            output: vec![Builder::default()],
        }
    }

    pub fn render(mut self, body: &'t [Stmt]) -> RenderResult<Text> {
        self.run(body)?;
        Ok(self.output.pop().unwrap_or_default().finish())
    }

    pub fn deeper<T>(&mut self, work: impl FnOnce(&mut Self) -> RenderResult<T>) -> RenderResult<T> {
        if self.depth == MAX_DEPTH {
            return fail("statements, expressions and macro calls are nested too deeply");
        }
        self.depth += 1;
        let done = work(self);
        self.depth -= 1;
        done
    }

    pub fn lookup(&self, name: &str) -> Option<Value> {
        let mut scope = Some(self.scope);
        while let Some(at) = scope {
            let found = self.scopes[at].names.iter().find(|(found, _)| *found == name);
            if let Some((_, value)) = found {
                return Some(value.clone());
            }
            scope = self.scopes[at].parent;
        }
        None
    }

    fn set(&mut self, name: &'t str, value: Value) {
        let names = &mut self.scopes[self.scope].names;
        match names.iter_mut().find(|(found, _)| *found == name) {
            Some((_, old)) => *old = value,
            None => names.push((name, value)),
        }
    }

    /// Works in a new scope inside `parent`.
    fn scoped<T>(
        &mut self,
        parent: usize,
        work: impl FnOnce(&mut Self) -> RenderResult<T>,
    ) -> RenderResult<T> {
        self.fuel.spend(1)?;
        let outer = self.scope;
        self.scope = self.scopes.len();
        self.scopes.push(Scope { parent: Some(parent), ..Scope::default() });
        let done = work(self);
        if self.scopes.len() == self.scope + 1 && !self.scopes[self.scope].captured {
            self.scopes.pop();
        }
        self.scope = outer;
        done
    }

    /// What `work` writes, as a text.
    fn captured(&mut self, work: impl FnOnce(&mut Self) -> RenderResult<()>) -> RenderResult<Text> {
        self.output.push(Builder::default());
        let done = work(self);
        let text = self.output.pop().unwrap_or_default().finish();
        done.map(|()| text)
    }

    fn write(&mut self, text: &Text) -> RenderResult<()> {
        self.fuel.spend_bytes(text.len())?;
        if let Some(output) = self.output.last_mut() {
            output.push(text);
        }
        Ok(())
    }

    fn run(&mut self, body: &'t [Stmt]) -> RenderResult<Flow> {
        for stmt in body {
            let flow = self.statement(stmt).map_err(|failure| RenderError {
                line: if failure.line == 0 { stmt.line } else { failure.line },
                ..failure
            })?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&mut self, stmt: &'t Stmt) -> RenderResult<Flow> {
        self.fuel.spend(1)?;
        self.deeper(|this| match &stmt.kind {
            StmtKind::Break => Ok(Flow::Break),
            StmtKind::Continue => Ok(Flow::Continue),
            StmtKind::If { branches, otherwise } => {
                for (test, body) in branches {
                    if this.eval(test)?.is_true() {
                        return this.run(body);
                    }
                }
                this.run(otherwise)
            }
            StmtKind::With { values, body } => {
                let outer = this.scope;
                this.scoped(outer, |this| {
                    for (target, value) in values {
                        let inner = std::mem::replace(&mut this.scope, outer);
                        let value = this.eval(value);
                        this.scope = inner;
                        this.assign(target, value?)?;
                    }
                    this.run(body)
                })
            }
            other => this.simple(other).map(|()| Flow::Next),
        })
    }

    /// A statement that no `break` can leave.
    fn simple(&mut self, kind: &'t StmtKind) -> RenderResult<()> {
        match kind {
            StmtKind::Data(text) => self.write(text),
            StmtKind::Emit(value) => {
                let value = self.eval_written(value)?;
                self.write(&to_text(&value, &self.fuel)?)
            }
            StmtKind::For(node) => {
                let items = self.eval(&node.items)?;
                self.run_loop(node, &items, 0, self.scope)
            }
            StmtKind::Set { target, value } => {
                let value = self.eval(value)?;
                self.assign(target, value)
            }
            StmtKind::SetBlock { target, filters, body } => {
                let text = self.block(filters, body)?;
                self.assign(target, text)
            }
            StmtKind::FilterBlock { filters, body } => {
                let text = self.block(filters, body)?;
                self.write(&to_text(&text, &self.fuel)?)
            }
            StmtKind::Macro(node) => {
                let value = self.define(node)?;
                self.set(&node.name, value);
                Ok(())
            }
            StmtKind::CallBlock { callee, args, caller } => self.call_block(callee, args, caller),
            StmtKind::Scope(body) => self.scoped(self.scope, |this| this.run(body)).map(drop),
            _ => Ok(()),
        }
    }

    /// A block's text, gone through filters.
    fn block(&mut self, filters: &'t [NamedCall], body: &'t [Stmt]) -> RenderResult<Value> {
        let scope = self.scope;
        let text = self.captured(|this| this.scoped(scope, |this| this.run(body)).map(drop))?;
        let mut value = Value::Str(text);
        for filter in filters {
            let args = self.args(&filter.args)?;
            value = self.filter(&filter.name, value, args)?;
        }
        Ok(value)
    }

    fn define(&mut self, node: &'t Macro) -> RenderResult<Value> {
        self.fuel.spend(1)?;
        self.scopes[self.scope].captured = true;
        self.macros.push((node, self.scope));
        Ok(Value::Macro(self.macros.len() - 1))
    }

    fn call_block(
        &mut self,
        callee: &'t super::syntax::Expr,
        args: &'t Args,
        caller: &'t Macro,
    ) -> RenderResult<()> {
        let callee = self.eval(callee)?;
        let mut args = self.args(args)?;
        let caller = self.define(caller)?;
        args.named.push(("caller".into(), caller));
        let value = self.call(&callee, args)?;
        self.write(&to_text(&value, &self.fuel)?)
    }

    pub fn assign(&mut self, target: &'t Target, value: Value) -> RenderResult<()> {
        match target {
            Target::Name(name) => self.set(name, value),
            Target::Attribute(name, attribute) => {
                let Some(Value::Namespace(id)) = self.lookup(name) else {
                    return fail("only a namespace's attributes can be set");
                };
                if matches!(value, Value::Namespace(_)) {
                    return fail("a namespace in a namespace is not offered to templates");
                }
                self.fuel.spend(1)?;
                let names = &mut self.namespaces[id];
                match names.iter_mut().find(|(found, _)| found == attribute) {
                    Some((_, old)) => *old = value,
                    None => names.push((attribute.clone(), value)),
                }
            }
            Target::Tuple(targets) => {
                let values = value.iterate(&self.fuel)?;
                if values.len() != targets.len() {
                    return fail(format!("{} values for {} names", values.len(), targets.len()));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value)?;
                }
            }
        }
        Ok(())
    }

    /// Runs a loop over `items`; `outer` is the scope in which it stands.
    fn run_loop(&mut self, node: &'t For, items: &Value, depth: usize, outer: usize) -> RenderResult<()> {
        let mut items = items.iterate(&self.fuel)?;
        if let Some(filter) = &node.filter {
            let mut kept = Vec::new();
            for item in items {
                let keep = self.scoped(outer, |this| {
                    this.assign(&node.target, item.clone())?;
                    Ok(this.eval(filter)?.is_true())
                })?;
                if keep {
                    kept.push(item);
                }
            }
            items = kept;
        }
        if items.is_empty() {
            return self.scoped(outer, |this| this.run(&node.otherwise)).map(drop);
        }
        let items = Rc::new(items);
        let id = self.loops.len();
        self.loops.push(Loop {
            node,
            scope: outer,
            items: Rc::clone(&items),
            index: 0,
            depth,
            changed: None,
        });
        for (index, item) in items.iter().enumerate() {
            self.loops[id].index = index;
            let flow = self.scoped(outer, |this| {
                this.assign(&node.target, item.clone())?;
                this.set("loop", Value::Loop(id));
                this.run(&node.body)
            })?;
            if flow == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    /// `loop(…)` in a recursive loop.
    pub fn call_loop(&mut self, id: usize, args: CallArgs) -> RenderResult<Value> {
        let [Some(items)] = args.bind("loop", ["iterable"])? else {
            return fail("loop takes what it goes through");
        };
        let Loop { node, scope, depth, .. } = self.loops[id];
        if !node.recursive {
            return fail("the loop is not recursive");
        }
        let text = self.captured(|this| this.run_loop(node, &items, depth + 1, scope))?;
        Ok(Value::Str(text))
    }

    pub fn call_macro(&mut self, id: usize, mut args: CallArgs) -> RenderResult<Value> {
        let (node, scope) = self.macros[id];
        let name = &node.name;
        let caller =
            args.named.iter().position(|(name, _)| name == "caller").map(|at| args.named.remove(at).1);
        if caller.is_some() && !node.uses_caller {
            return fail(format!("the macro {name} takes no block"));
        }
        let rest = args.positional.split_off(args.positional.len().min(node.params.len()));
        if !rest.is_empty() && !node.uses_varargs {
            return fail(format!("the macro {name} takes at most {} arguments", node.params.len()));
        }
        let mut given: Vec<Option<Value>> = args.positional.into_iter().map(Some).collect();
        given.resize(node.params.len(), None);
        let mut others = Vec::new();
        for (key, value) in args.named {
            match node.params.iter().position(|(param, _)| *param == key) {
                Some(at) if given[at].is_none() => given[at] = Some(value),
                None if node.uses_kwargs => others.push((Value::str(&key), value)),
                _ => return fail(format!("the macro {name} has no argument {key}, or has it twice")),
            }
        }
        let others = Value::dict(others, &self.fuel)?;
        let rest = Value::seq(SeqKind::Tuple, rest, &self.fuel)?;
        let text = self.captured(|this| {
            this.scoped(scope, |this| {
                for ((param, default), value) in node.params.iter().zip(given) {
                    let value = match (value, default) {
                        (Some(value), _) => value,
                        (None, Some(default)) => this.eval(default)?,
                        (None, None) => Value::undefined(param),
                    };
                    this.set(param, value);
                }
                if node.uses_varargs {
                    this.set("varargs", rest);
                }
                if node.uses_kwargs {
                    this.set("kwargs", others);
                }
                if node.uses_caller {
                    this.set("caller", caller.unwrap_or_else(|| Value::undefined("caller")));
                }
                this.run(&node.body)
            })
            .map(drop)
        })?;
        Ok(Value::Str(text))
    }
}
