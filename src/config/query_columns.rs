//! The columns that a query names, found in its text: before its plan exists, because the types of
//! columns that it does not use do not matter.
//!
//! A column that the query uses is always found. One that it does not use can be found too, such as
//! one with the name of a column of a subquery.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    ExceptSelectItem, ExcludeSelectItem, Expr, Ident, ObjectName, Query, Select, SelectItem,
    SetExpr, TableFactor, Visit, Visitor, WildcardAdditionalOptions,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

/// The columns that a query names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryColumns {
    /// The names, as the engine reads them: unchanged in quotes, otherwise in lower case.
    names: Vec<String>,
    /// Per `*` over the relation, the columns that it excludes.
    stars: Vec<Vec<String>>,
}

impl QueryColumns {
    /// The columns that a query over `relation` names. If the query cannot be parsed, it may use all
    /// columns; it is refused when it is planned.
    pub(super) fn of(sql: &str, relation: &str) -> Self {
        let mut found = Found { columns: Self::default(), relation };
        match Parser::parse_sql(&GenericDialect {}, sql) {
            Ok(statements) => {
                let _ = statements.visit(&mut found);
            }
            Err(_) => found.columns.stars.push(Vec::new()),
        }
        found.columns
    }

    /// Whether the query may use a column, by its name in any case.
    pub fn uses(&self, column: &str) -> bool {
        let is_in = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case(column));
        is_in(&self.names) || self.stars.iter().any(|excluded| !is_in(excluded))
    }
}

impl QueryColumns {
    /// Whether the query writes exactly this name.
    pub fn spells(&self, column: &str) -> bool {
        self.names.iter().any(|name| name == column)
    }

    /// How the query spells a column, whatever its case in the files.
    pub fn spelling(&self, column: &str) -> Option<&str> {
        let all = || self.names.iter().chain(self.stars.iter().flatten()).map(String::as_str);
        let in_any_case = || all().find(|name| name.eq_ignore_ascii_case(column));
        all().find(|name| *name == column).or_else(in_any_case)
    }
}

/// Whether a query may read a relation: one that cannot be parsed may read any.
pub(super) fn reads(sql: &str, relation: &str) -> bool {
    let Ok(statements) = Parser::parse_sql(&GenericDialect {}, sql) else {
        return true;
    };
    statements.visit(&mut Reads { relation }).is_break()
}

/// Ends at a relation of this name.
struct Reads<'a> {
    relation: &'a str,
}

impl Visitor for Reads<'_> {
    type Break = ();

    fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<()> {
        match last_name(name) {
            Some(name) if name != self.relation => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        // The relation of `TABLE curated` is not visited.
        fn names_table(body: &SetExpr) -> bool {
            match body {
                SetExpr::SetOperation { left, right, .. } => {
                    names_table(left) || names_table(right)
                }
                body => matches!(body, SetExpr::Table(_)),
            }
        }
        if names_table(&query.body) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

struct Found<'a> {
    columns: QueryColumns,
    relation: &'a str,
}

impl Found<'_> {
    fn name(&mut self, ident: &Ident) {
        let name = name_of(ident);
        if !self.columns.names.contains(&name) {
            self.columns.names.push(name);
        }
    }

    /// A `*`: its columns are those of the relation, if one of the tables is the relation.
    fn star(&mut self, select: &Select, options: &WildcardAdditionalOptions) {
        let tables = select.from.iter().flat_map(|from| {
            let joined = from.joins.iter().map(|join| &join.relation);
            std::iter::once(&from.relation).chain(joined)
        });
        let mut of_relation = tables.map(|table| match table {
            TableFactor::Table { name, .. } => {
                last_name(name).is_none_or(|name| name == self.relation)
            }
            // The query inside is visited for itself.
            TableFactor::Derived { .. } => false,
            _ => true,
        });
        if !of_relation.any(|is_relation| is_relation) {
            return;
        }
        let mut excluded: Vec<String> = Vec::new();
        match &options.opt_exclude {
            Some(ExcludeSelectItem::Single(name)) => excluded.extend(last_name(name)),
            Some(ExcludeSelectItem::Multiple(names)) => {
                excluded.extend(names.iter().filter_map(last_name));
            }
            None => {}
        }
        if let Some(ExceptSelectItem { first_element, additional_elements }) = &options.opt_except {
            excluded.extend(std::iter::once(first_element).chain(additional_elements).map(name_of));
        }
        self.columns.stars.push(excluded);
    }
}

fn name_of(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_ascii_lowercase(),
    }
}

fn last_name(name: &ObjectName) -> Option<String> {
    name.0.last()?.as_ident().map(name_of)
}

impl Visitor for Found<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        fn is_plain(body: &SetExpr) -> bool {
            match body {
                SetExpr::Select(_) | SetExpr::Query(_) => true,
                SetExpr::SetOperation { left, right, .. } => is_plain(left) && is_plain(right),
                _ => false,
            }
        }
        if !is_plain(&query.body) {
            self.columns.stars.push(Vec::new());
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        if select.projection.is_empty() {
            // `FROM latest` alone.
            self.star(select, &WildcardAdditionalOptions::default());
        }
        for item in &select.projection {
            if let SelectItem::Wildcard(options) | SelectItem::QualifiedWildcard(_, options) = item
            {
                self.star(select, options);
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<()> {
        match expression {
            Expr::Identifier(name) => self.name(name),
            // A table and its column, or a column and its fields.
            Expr::CompoundIdentifier(names) => names.iter().for_each(|name| self.name(name)),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relations_that_a_query_reads_are_found() {
        for sql in [
            "SELECT * FROM curated",
            "WITH c AS (SELECT 1 FROM Curated) SELECT * FROM c",
            "SELECT * FROM history h JOIN \"curated\" c ON h.id = c.id",
            "SELECT id FROM history WHERE id IN (SELECT id FROM curated)",
            "SELECT id, (SELECT max(v) FROM curated) FROM history",
            "SELECT 1 FROM history UNION ALL TABLE curated",
            "SELECT * FROM history WHERE (",
        ] {
            assert!(reads(sql, "curated"), "{sql}");
        }
        for sql in [
            "SELECT curated FROM history",
            "SELECT 'curated' FROM history -- curated",
            "SELECT h.id FROM history h CROSS JOIN (VALUES (1), (-1)) AS side (sign)",
        ] {
            assert!(!reads(sql, "curated"), "{sql}");
        }
    }

    #[test]
    fn the_columns_of_a_query_are_found_in_its_text() {
        for (sql, used, unused) in [
            ("SELECT Id, \"Last\" AS x, 2 * v FROM latest", "id Last v last", "x latest select"),
            ("SELECT * FROM latest", "a b", ""),
            ("SELECT * EXCLUDE (Meta, \"B\"), c FROM latest", "a c", "meta b"),
            ("SELECT l.* EXCEPT (meta) FROM latest AS l", "a", "meta"),
            ("SELECT * EXCEPT (a, b), a FROM latest WHERE b > 0", "a b c", ""),
            ("SELECT l.id, l.m.f FROM latest l WHERE upper(k) IN ('z', \"é\")", "id m f k é", "z"),
            ("SELECT * FROM (SELECT id, v AS w FROM latest) s WHERE w > 1", "id v w", "s x"),
            ("WITH s AS (SELECT id FROM latest) SELECT s.* FROM s", "id", "x"),
            (
                "SELECT CASE WHEN op = 'D' THEN a END, b::INT, [c][1], d['x'] FROM latest",
                "op a b c d",
                "x",
            ),
            ("SELECT CAST(a AS DATE), count(*) OVER (ORDER BY b) FROM latest", "a b", "c date"),
            ("TABLE latest", "a", ""),
            ("FROM latest", "a", ""),
            ("SELECT (a FROM latest", "a", ""),
        ] {
            let columns = QueryColumns::of(sql, "latest");
            for name in used.split_whitespace() {
                assert!(columns.uses(name), "{sql} uses {name}: {columns:?}");
            }
            for name in unused.split_whitespace() {
                assert!(!columns.uses(name), "{sql} does not use {name}: {columns:?}");
            }
        }
    }
}
