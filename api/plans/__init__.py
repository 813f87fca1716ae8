"""Plans as people hold them: asked for, printed, compared, explained, made smaller."""
