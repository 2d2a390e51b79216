"""The Images API of OpenAI, with the fields that Together adds to it: a translation onto ImageService."""
