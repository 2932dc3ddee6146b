"""From folders of results to tables and plots."""
