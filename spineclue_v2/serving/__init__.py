"""A small web service around the prediction of one scan at a time: uploads, progress, pages and downloads."""
